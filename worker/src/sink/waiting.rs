//! Finished batches that wait to be written, and which of them go together: those of one batch key, the oldest
//! first, up to a number and to a size. No clock, no tasks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use shared::config::SinkConfig;
use shared::id::BatchId;
use shared::name::Key;
use tokio::time::Instant;

use super::Marker;
use crate::handler::Rows;

/// How batches are grouped. Documented in [`SinkConfig`].
#[derive(Debug, Clone)]
pub struct Grouping {
    /// Most batches of a group.
    pub size: usize,
    /// How long the first of a group waits for others.
    pub timeout: Option<Duration>,
    /// Most bytes of rows on the way.
    pub bytes: u64,
    /// Groups written at once.
    pub concurrency: usize,
}

impl From<&SinkConfig> for Grouping {
    fn from(config: &SinkConfig) -> Self {
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            size: number(config.size),
            timeout: config.timeout.map(shared::config::Span::get),
            bytes: config.bytes.bytes(),
            concurrency: number(config.concurrency),
        }
    }
}

impl Default for Grouping {
    fn default() -> Self {
        Self::from(&SinkConfig::default())
    }
}

impl Grouping {
    fn group_bytes(&self) -> u64 {
        self.bytes / self.concurrency as u64
    }
}

/// One batch to store.
#[derive(Debug)]
pub(super) struct Write<R> {
    pub(super) marker: Marker,
    pub(super) rows: R,
    /// How much room its rows take.
    pub(super) bytes: u64,
}

impl Write<Arc<Rows>> {
    /// Rows as the handler gave them.
    pub(super) fn new(marker: Marker, rows: Arc<Rows>) -> Self {
        let bytes = rows.bytes();
        Self {
            marker,
            rows,
            bytes,
        }
    }
}

/// What waits, in order of arrival; each with whatever its answer goes to.
#[derive(Debug)]
pub(super) struct Waiting<R, A> {
    grouping: Grouping,
    batches: VecDeque<(Write<R>, A, Instant)>,
    bytes: u64,
}

/// What is to be written next.
#[derive(Debug)]
pub(super) enum Next<R, A> {
    /// These, in one transaction.
    Group(Vec<(Write<R>, A)>),
    /// Nothing before this moment, unless something is added.
    At(Instant),
    /// Nothing, until something is added.
    Nothing,
}

/// The oldest batches of one key.
#[derive(Default)]
struct Gathered {
    members: Vec<usize>,
    batches: HashSet<BatchId>,
    bytes: u64,
    is_full: bool,
}

impl<R, A> Waiting<R, A> {
    pub(super) fn new(grouping: Grouping) -> Self {
        Self {
            grouping,
            batches: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(super) fn push(&mut self, write: Write<R>, answer: A, now: Instant) {
        self.bytes += write.bytes;
        self.batches.push_back((write, answer, now));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Takes the oldest group that is due: full, or as old as the timeout. `hurry`: nothing waits for company.
    pub(super) fn take(&mut self, now: Instant, hurry: bool) -> Next<R, A> {
        // What waits for room would wait for a timeout instead.
        let is_crowded = self.bytes >= self.grouping.bytes / 2;
        let timeout = self.grouping.timeout.filter(|_| !hurry && !is_crowded);
        let mut first_due = None;
        let groups = self.gather();
        for group in groups {
            let due = self.batches[group.members[0]].2 + timeout.unwrap_or_default();
            if group.is_full || due <= now {
                return Next::Group(self.remove(&group.members));
            }
            first_due = Some(first_due.map_or(due, |first| due.min(first)));
        }
        first_due.map_or(Next::Nothing, Next::At)
    }

    /// The groups that could go, in order of their oldest batch.
    fn gather(&self) -> Vec<Gathered> {
        let mut by_key: HashMap<Option<&Key>, usize> = HashMap::new();
        let mut groups: Vec<Gathered> = Vec::new();
        for (index, (write, ..)) in self.batches.iter().enumerate() {
            let at = *by_key
                .entry(write.marker.batch_key.as_ref())
                .or_insert(groups.len());
            if at == groups.len() {
                groups.push(Gathered::default());
            }
            groups[at].add(index, write, &self.grouping);
        }
        groups
    }

    fn remove(&mut self, members: &[usize]) -> Vec<(Write<R>, A)> {
        let mut group = Vec::with_capacity(members.len());
        // From the last to the first, so that places stay true.
        for index in members.iter().rev() {
            if let Some((write, answer, _)) = self.batches.remove(*index) {
                self.bytes -= write.bytes;
                group.push((write, answer));
            }
        }
        group.reverse();
        group
    }
}

impl Gathered {
    fn add<R>(&mut self, index: usize, write: &Write<R>, grouping: &Grouping) {
        if self.is_full {
            return;
        }
        let is_too_much = self.bytes + write.bytes > grouping.group_bytes();
        // The same batch twice: the second must see the first one's marker.
        let is_second = self.batches.contains(&write.marker.batch);
        if !self.members.is_empty() && (is_too_much || is_second) {
            self.is_full = true;
            return;
        }
        self.members.push(index);
        self.batches.insert(write.marker.batch);
        self.bytes += write.bytes;
        self.is_full = self.members.len() == grouping.size;
    }
}

#[cfg(test)]
mod tests {
    use shared::name::{Attempt, Instance};
    use shared::outcome::Completed;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Bench {
        waiting: Waiting<u32, ()>,
        now: Instant,
    }

    impl Bench {
        fn new(size: usize, timeout: Option<Duration>, bytes: u64) -> Self {
            let grouping = Grouping {
                size,
                timeout,
                bytes,
                concurrency: 1,
            };
            Self {
                waiting: Waiting::new(grouping),
                now: Instant::now(),
            }
        }

        fn push_batch(&mut self, batch: BatchId, number: u32, key: &str, bytes: u64) {
            let marker = Marker {
                batch,
                attempt: Attempt::new(1),
                writer: Instance::from("w".to_owned()),
                completed: Completed::default(),
                batch_key: (!key.is_empty()).then(|| Key::new(key).unwrap()),
            };
            let write = Write {
                marker,
                rows: number,
                bytes,
            };
            self.waiting.push(write, (), self.now);
        }

        fn push(&mut self, number: u32, key: &str, bytes: u64) {
            self.push_batch(BatchId::generate(), number, key, bytes);
        }

        fn group(&mut self) -> Vec<u32> {
            match self.waiting.take(self.now, false) {
                Next::Group(group) => group.iter().map(|(write, ())| write.rows).collect(),
                Next::At(_) | Next::Nothing => Vec::new(),
            }
        }
    }

    #[test]
    fn one_key_makes_one_group_up_to_its_size() {
        let mut bench = Bench::new(3, None, 1_000);
        for (number, key) in (0..).zip(["", "a", "", "b", "", "", "a"]) {
            bench.push(number, key, 1);
        }
        assert_eq!(bench.group(), [0, 2, 4]);
        assert_eq!(bench.group(), [1, 6]);
        assert_eq!(bench.group(), [3]);
        assert_eq!(bench.group(), [5]);
        assert!(matches!(
            bench.waiting.take(bench.now, false),
            Next::Nothing
        ));
        assert!(bench.waiting.is_empty() && bench.waiting.bytes == 0);
    }

    #[test]
    fn a_group_ends_at_its_bytes_and_a_large_batch_goes_alone() {
        let mut bench = Bench::new(10, None, 100);
        for (number, bytes) in [(0, 60), (1, 40), (2, 1), (3, 500), (4, 1)] {
            bench.push(number, "", bytes);
        }
        assert_eq!(bench.group(), [0, 1]);
        assert_eq!(bench.group(), [2]);
        assert_eq!(bench.group(), [3]);
        assert_eq!(bench.group(), [4]);
    }

    #[test]
    fn with_a_timeout_the_first_waits_for_company() {
        let mut bench = Bench::new(2, Some(SECOND), 1_000);
        let start = bench.now;
        bench.push(0, "", 1);
        bench.now += SECOND / 2;
        bench.push(1, "a", 1);
        assert!(
            matches!(bench.waiting.take(bench.now, false), Next::At(at) if at == start + SECOND)
        );
        bench.push(2, "a", 1);
        assert_eq!(bench.group(), [1, 2], "full before the other is old");
        bench.now = start + SECOND;
        assert_eq!(bench.group(), [0]);
    }

    #[test]
    fn nothing_waits_for_company_in_a_hurry_or_where_there_is_no_room_for_more() {
        let mut bench = Bench::new(10, Some(SECOND), 100);
        bench.push(0, "", 1);
        assert!(matches!(
            bench.waiting.take(bench.now, true),
            Next::Group(group) if group.len() == 1
        ));
        bench.push(1, "a", 25);
        assert_eq!(bench.group(), [] as [u32; 0]);
        bench.push(2, "b", 25);
        assert_eq!(bench.group(), [1]);
        assert_eq!(bench.group(), [] as [u32; 0]);
    }

    #[test]
    fn a_batch_that_comes_twice_is_never_twice_in_a_group() {
        let mut bench = Bench::new(10, Some(SECOND), 100);
        let twice = BatchId::generate();
        bench.push_batch(twice, 0, "", 1);
        bench.push(1, "", 1);
        bench.push_batch(twice, 2, "", 1);
        bench.push(3, "", 1);
        assert_eq!(bench.group(), [0, 1]);
        bench.now += SECOND;
        assert_eq!(bench.group(), [2, 3]);
    }
}
