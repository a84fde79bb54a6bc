//! The dispatcher against a model of the ledger: no IO, thousands of steps a second.

use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;
use shared::name::Attempt;

use super::*;

const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);

/// What the ledger would say, and what the broker and the workers hold.
struct World {
    dispatcher: Dispatcher,
    now: Timestamp,
    /// Pending in the ledger, in order, with due time.
    pending: BTreeMap<(RunId, Key), VecDeque<(BatchId, Timestamp)>>,
    /// Taken and not recorded: still pending in the ledger.
    unrecorded: Vec<Dispatch>,
    /// Recorded as out.
    out: Vec<Dispatch>,
    done: HashSet<BatchId>,
    /// The last attempt of each batch that had one.
    attempts: HashMap<BatchId, Attempt>,
    order: Vec<Key>,
}

fn pipeline() -> PipelineName {
    PipelineName::new("work").unwrap()
}

fn config(window: u32, per_key: Option<u32>) -> PipelineConfig {
    PipelineConfig {
        window_min: 1,
        window_max: window,
        max_in_flight_per_key: per_key,
        ..PipelineConfig::default()
    }
}

impl World {
    fn new(window: u32, per_key: Option<u32>) -> Self {
        let mut dispatcher =
            Dispatcher::new(&BTreeMap::from([(pipeline(), config(window, per_key))]));
        dispatcher.slots(&HashMap::from([(pipeline(), 1_000)]));
        Self {
            dispatcher,
            now: NOW,
            pending: BTreeMap::new(),
            unrecorded: vec![],
            out: vec![],
            done: HashSet::new(),
            attempts: HashMap::new(),
            order: vec![],
        }
    }

    fn submit(&mut self, run: RunId, priority: Priority, key: &str, count: usize) {
        let key = Key::new(key).unwrap();
        let batches = self.pending.entry((run, key.clone())).or_default();
        batches.extend((0..count).map(|_| (BatchId::generate(), self.now)));
        let id = BacklogId {
            run,
            pipeline: pipeline(),
            key,
        };
        assert!(self.dispatcher.pending(
            &Backlog {
                id,
                priority,
                due: self.now
            },
            self.now
        ));
    }

    /// Takes up to `limit` batches, answering reads at once.
    fn take(&mut self, limit: usize) -> usize {
        let mut total = 0;
        loop {
            self.dispatcher.wake(self.now);
            let reads = self.dispatcher.reads(self.now);
            for read in &reads {
                let page = self.page(read);
                self.dispatcher.read(&read.backlog, page, self.now);
            }
            let taken = self.dispatcher.take(self.now, limit - total);
            if taken.is_empty() && reads.is_empty() {
                return total;
            }
            total += taken.len();
            for dispatch in taken {
                let again = self
                    .unrecorded
                    .iter()
                    .chain(&self.out)
                    .any(|d| d.batch.id == dispatch.batch.id);
                assert!(!again, "nothing is out twice");
                self.order.push(dispatch.backlog.key.clone());
                self.unrecorded.push(dispatch);
            }
            self.part_with_the_gone();
            let finished = self
                .unrecorded
                .iter()
                .find(|dispatch| self.done.contains(&dispatch.batch.id));
            assert_eq!(finished, None, "finished batches are not published");
        }
    }

    fn page(&self, read: &Read) -> Page {
        let mut page = Page {
            batches: vec![],
            more_due: None,
        };
        let empty = VecDeque::new();
        for (id, due) in self
            .pending
            .get(&(read.backlog.run, read.backlog.key.clone()))
            .unwrap_or(&empty)
        {
            if *due > self.now || page.batches.len() == read.limit as usize {
                page.more_due = Some(*due);
                break;
            }
            page.batches.push(PendingBatch {
                id: *id,
                attempt: self.attempts.get(id).copied().unwrap_or_default(),
                bytes: 10,
            });
        }
        page
    }

    fn record(&mut self) {
        let ids: Vec<_> = self.unrecorded.iter().map(|d| d.batch.id).collect();
        for dispatch in self.unrecorded.drain(..) {
            let slot = (dispatch.backlog.run, dispatch.backlog.key.clone());
            self.pending
                .get_mut(&slot)
                .unwrap()
                .retain(|(id, _)| *id != dispatch.batch.id);
            self.out.push(dispatch);
        }
        self.dispatcher.recorded(&ids);
    }

    /// What the publishing task finds when it asks for payloads: batches that were settled since they were
    /// read do not wait any more.
    fn part_with_the_gone(&mut self) {
        let waits = |dispatch: &Dispatch| {
            let slot = (dispatch.backlog.run, dispatch.backlog.key.clone());
            let pending = self.pending.get(&slot);
            let known = pending
                .is_some_and(|batches| batches.iter().any(|(id, _)| *id == dispatch.batch.id));
            known
                && self
                    .attempts
                    .get(&dispatch.batch.id)
                    .copied()
                    .unwrap_or_default()
                    == dispatch.batch.attempt
        };
        let (waiting, gone) = self.unrecorded.drain(..).partition(waits);
        self.unrecorded = waiting;
        for dispatch in gone {
            self.dispatcher.gone(&dispatch, self.now);
        }
    }

    /// A publish that was taken for failed had worked: the outcome of that attempt comes while the batch is
    /// back in the dispatcher's memory.
    fn fail_and_settle(&mut self, index: usize, again: bool) {
        let failed = self.unrecorded.swap_remove(index);
        self.dispatcher.unpublished(failed.clone());
        let Dispatch {
            backlog,
            priority,
            batch,
        } = failed;
        let slot = (backlog.run, backlog.key.clone());
        self.pending
            .get_mut(&slot)
            .unwrap()
            .retain(|(id, _)| *id != batch.id);
        self.dispatcher.settled(batch.id);
        if again {
            self.attempts.insert(batch.id, batch.attempt.next());
            self.pending
                .get_mut(&slot)
                .unwrap()
                .push_back((batch.id, self.now));
            self.dispatcher.pending(
                &Backlog {
                    id: backlog,
                    priority,
                    due: self.now,
                },
                self.now,
            );
        } else {
            self.done.insert(batch.id);
        }
    }

    fn complete(&mut self, index: usize) {
        let dispatch = self.out.swap_remove(index);
        self.done.insert(dispatch.batch.id);
        self.dispatcher.settled(dispatch.batch.id);
    }

    fn retry(&mut self, index: usize, delay_s: i64) {
        let Dispatch {
            backlog,
            priority,
            batch,
        } = self.out.swap_remove(index);
        let due = self.now + jiff::SignedDuration::from_secs(delay_s);
        let batches = self
            .pending
            .get_mut(&(backlog.run, backlog.key.clone()))
            .unwrap();
        let at = batches.partition_point(|(_, other)| *other <= due);
        batches.insert(at, (batch.id, due));
        self.attempts.insert(batch.id, batch.attempt.next());
        self.dispatcher.settled(batch.id);
        self.dispatcher.pending(
            &Backlog {
                id: backlog,
                priority,
                due,
            },
            self.now,
        );
    }

    fn finish(&mut self) {
        for _ in 0..100_000 {
            let took = self.take(1_000);
            self.record();
            let settled = self.out.len();
            while !self.out.is_empty() {
                self.complete(0);
            }
            if took + settled == 0 {
                match self.dispatcher.wake(self.now) {
                    Some(due) => self.now = due,
                    None => return,
                }
            }
        }
        panic!("the dispatcher does not come to an end");
    }
}

#[test]
fn the_window_bounds_what_is_out() {
    let mut world = World::new(10, None);
    world.submit(RunId::generate(), Priority::Normal, "a", 100);
    assert_eq!(world.take(1_000), 10);
    assert_eq!(world.take(1_000), 0);
    world.record();
    world.complete(0);
    assert_eq!(world.take(1_000), 1);
}

#[test]
fn slots_size_the_window() {
    let mut world = World::new(1_000, None);
    world.submit(RunId::generate(), Priority::Normal, "a", 1_000);
    world.dispatcher.slots(&HashMap::new());
    assert_eq!(world.take(1_000), 1, "window_min without workers");
    world.dispatcher.slots(&HashMap::from([(pipeline(), 3)]));
    assert_eq!(world.take(1_000), 3 * 4 - 1);
}

#[test]
fn a_small_tenant_does_not_wait_for_a_big_one() {
    let mut world = World::new(20, None);
    world.submit(RunId::generate(), Priority::Normal, "big", 100_000);
    world.take(20);
    world.record();
    world.submit(RunId::generate(), Priority::Normal, "small", 10);
    world.order.clear();
    while !world.out.is_empty() {
        world.complete(0);
    }
    world.take(20);
    let small = world
        .order
        .iter()
        .filter(|key| key.as_str() == "small")
        .count();
    assert_eq!(small, 10, "{:?}", world.order);
}

#[test]
fn a_key_keeps_to_its_own_limit() {
    let mut world = World::new(100, Some(3));
    world.submit(RunId::generate(), Priority::Normal, "a", 10);
    world.submit(RunId::generate(), Priority::Normal, "b", 2);
    assert_eq!(world.take(100), 5);
    world.record();
    let first_a = world
        .out
        .iter()
        .position(|d| d.backlog.key.as_str() == "a")
        .unwrap();
    world.complete(first_a);
    assert_eq!(world.take(100), 1);
    world.finish();
    assert_eq!(world.done.len(), 12);
}

#[test]
fn high_priority_goes_first_within_a_key() {
    let mut world = World::new(1, None);
    let (low, high) = (RunId::generate(), RunId::generate());
    world.submit(low, Priority::Low, "a", 2);
    world.submit(high, Priority::High, "a", 1);
    world.take(1);
    assert_eq!(world.unrecorded[0].backlog.run, high);
}

#[test]
fn what_could_not_be_published_goes_out_again_with_the_same_attempt() {
    let mut world = World::new(5, None);
    world.submit(RunId::generate(), Priority::Normal, "a", 3);
    world.take(5);
    let failed = world.unrecorded.remove(1);
    world.dispatcher.unpublished(failed.clone());
    world.record();
    assert_eq!(world.take(5), 1);
    assert_eq!(world.unrecorded[0], failed);
    world.finish();
    assert_eq!(world.done.len(), 3);
}

#[test]
fn what_was_out_before_a_restart_keeps_its_place() {
    let mut world = World::new(2, None);
    let out = OutBatch {
        id: BatchId::generate(),
        pipeline: pipeline(),
        key: Key::default(),
    };
    assert!(world.dispatcher.was_out(out.clone()));
    world.submit(RunId::generate(), Priority::Normal, "a", 5);
    assert_eq!(world.take(5), 1);
    world.dispatcher.settled(out.id);
    assert_eq!(world.take(5), 1);
    world.dispatcher.settled(out.id);
    assert_eq!(world.take(5), 0, "settling twice frees one place");
}

#[test]
fn idle_keys_cost_nothing() {
    let mut world = World::new(50, None);
    for n in 0..500 {
        world.submit(RunId::generate(), Priority::Normal, &format!("k{n}"), 2);
    }
    world.finish();
    assert_eq!(world.done.len(), 1_000);
    let pipeline = &world.dispatcher.pipelines[&pipeline()];
    assert_eq!(
        (pipeline.keys.len(), pipeline.turns.len(), pipeline.out),
        (0, 0, 0)
    );
    assert_eq!(world.dispatcher.out(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Submit { key: u8, count: u8, high: bool },
    Take(u8),
    Record,
    Complete(u8),
    Retry { index: u8, delay_s: u8 },
    FailPublish(u8),
    FailAndSettle { index: u8, again: bool },
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6u8, 1..40u8, any::<bool>()).prop_map(|(key, count, high)| Step::Submit {
            key,
            count,
            high
        }),
        (1..30u8).prop_map(Step::Take),
        Just(Step::Record),
        any::<u8>().prop_map(Step::Complete),
        (any::<u8>(), 0..20u8).prop_map(|(index, delay_s)| Step::Retry { index, delay_s }),
        any::<u8>().prop_map(Step::FailPublish),
        (any::<u8>(), any::<bool>())
            .prop_map(|(index, again)| Step::FailAndSettle { index, again }),
        (0..15u8).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the window holds, nothing is lost, nothing is out twice.
    #[test]
    fn everything_goes_out_exactly_once_in_the_end(
        steps in proptest::collection::vec(step(), 1..200),
        window in 1..20u32,
        per_key in proptest::option::of(1..5u32),
    ) {
        let mut world = World::new(window, per_key);
        let mut submitted = 0;
        for step in steps {
            match step {
                Step::Submit { key, count, high } => {
                    let priority = if high { Priority::High } else { Priority::Normal };
                    world.submit(RunId::generate(), priority, &format!("k{key}"), count.into());
                    submitted += usize::from(count);
                }
                Step::Take(limit) => { world.take(limit.into()); }
                Step::Record => world.record(),
                Step::Complete(n) if !world.out.is_empty() => world.complete(usize::from(n) % world.out.len()),
                Step::Retry { index, delay_s } if !world.out.is_empty() => {
                    world.retry(usize::from(index) % world.out.len(), delay_s.into());
                }
                Step::FailPublish(n) if !world.unrecorded.is_empty() => {
                    let index = usize::from(n) % world.unrecorded.len();
                    let failed = world.unrecorded.swap_remove(index);
                    world.dispatcher.unpublished(failed);
                }
                Step::FailAndSettle { index, again } if !world.unrecorded.is_empty() => {
                    world.fail_and_settle(usize::from(index) % world.unrecorded.len(), again);
                }
                Step::Wait(seconds) => world.now += jiff::SignedDuration::from_secs(seconds.into()),
                _ => {}
            }
            let out = world.unrecorded.len() + world.out.len();
            prop_assert_eq!(world.dispatcher.out(), out);
            prop_assert!(out <= window as usize);
            let mut per: HashMap<&Key, u32> = HashMap::new();
            for dispatch in world.unrecorded.iter().chain(&world.out) {
                *per.entry(&dispatch.backlog.key).or_default() += 1;
            }
            prop_assert!(per.values().all(|n| per_key.is_none_or(|limit| *n <= limit)));
        }
        world.finish();
        prop_assert_eq!(world.done.len(), submitted);
        let left: BTreeSet<_> = world.pending.values().flatten().map(|(id, _)| *id).collect();
        prop_assert!(left.is_empty());
        prop_assert!(world.dispatcher.pipelines[&pipeline()].keys.is_empty());
    }
}
