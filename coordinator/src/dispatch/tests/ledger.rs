//! A ledger without a disk. Batches that nobody touched are a number, so ten million cost nothing; what is
//! legal is decided by the real transition table.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};

use crate::ledger::transition::{self, Judged, State, Stored, Verdict};
use crate::ledger::{Backlog, BacklogId, Effect, Page, PendingBatch, Settled};
use crate::run::{Priority, RunState};

#[derive(Default)]
pub(super) struct Ledger {
    runs: Vec<Run>,
    backlogs: Vec<Pending>,
    run_index: HashMap<RunId, usize>,
    backlog_index: HashMap<BacklogId, usize>,
    dead: BTreeSet<BatchId>,
    /// How many batches are in each state.
    counts: [u64; 5],
    accepted: u64,
}

pub(super) struct Run {
    pub(super) state: RunState,
    pub(super) priority: Priority,
    backlogs: Vec<usize>,
}

/// One backlog, and what became of its batches.
struct Pending {
    id: BacklogId,
    run: usize,
    /// Never touched, but for those that are `ahead`; all due since then.
    fresh: Range<u64>,
    since: Timestamp,
    ahead: BTreeSet<u64>,
    /// Touched and pending.
    others: BTreeSet<(Timestamp, u64)>,
    /// Those that were touched, by number.
    rows: Vec<Option<Row>>,
}

/// A batch that was published at least once.
struct Row {
    stored: Stored,
    due: Timestamp,
    /// The last attempt that was published, and whether whoever published it took it for failed.
    published: Option<(Attempt, bool)>,
}

const FRESH: Stored = Stored {
    state: State::Pending,
    attempt: Attempt::NONE,
    failures: 0,
    releases: 0,
    called_off: false,
};

fn batch_id(backlog: usize, number: u64) -> BatchId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(backlog as u64).to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    BatchId::from_bytes(&bytes).unwrap()
}

fn place_of(batch: BatchId) -> (usize, u64) {
    let half =
        |range: Range<usize>| u64::from_be_bytes(batch.as_bytes()[range].try_into().unwrap());
    (usize::try_from(half(0..8)).unwrap(), half(8..16))
}

/// Submission and what operators do.
impl Ledger {
    pub(super) fn submit(
        &mut self,
        run: RunId,
        priority: Priority,
        pipeline: &PipelineName,
        key: &Key,
        count: u64,
        now: Timestamp,
    ) -> Backlog {
        let id = BacklogId {
            run,
            pipeline: pipeline.clone(),
            key: key.clone(),
        };
        let next_run = self.runs.len();
        let run = *self.run_index.entry(run).or_insert(next_run);
        if run == next_run {
            self.runs.push(Run {
                state: RunState::Running,
                priority,
                backlogs: vec![],
            });
        }
        let next = self.backlogs.len();
        let index = *self.backlog_index.entry(id.clone()).or_insert(next);
        if index == next {
            self.runs[run].backlogs.push(index);
            self.backlogs.push(Pending {
                id: id.clone(),
                run,
                fresh: 0..0,
                since: now,
                ahead: BTreeSet::new(),
                others: BTreeSet::new(),
                rows: vec![],
            });
        }
        self.backlogs[index].fresh.end += count;
        self.accepted += count;
        self.counts[State::Pending as usize] += count;
        Backlog {
            id,
            priority: self.runs[run].priority,
            due: now,
        }
    }

    pub(super) fn run(&mut self, run: RunId) -> &mut Run {
        &mut self.runs[self.run_index[&run]]
    }

    /// Everything pending of a cancelled run is cancelled.
    pub(super) fn cancel_pending(&mut self, run: RunId) {
        self.cancel_pending_at(self.run_index[&run]);
    }

    /// Everything pending of cancelled runs, late follow-ups among it, is cancelled.
    pub(super) fn cancel_all(&mut self) {
        for run in 0..self.runs.len() {
            if self.runs[run].state == RunState::Cancelled {
                self.cancel_pending_at(run);
            }
        }
    }

    fn cancel_pending_at(&mut self, run: usize) {
        for index in &self.runs[run].backlogs {
            let backlog = &mut self.backlogs[*index];
            let cancelled = backlog.count();
            self.counts[State::Pending as usize] -= cancelled;
            self.counts[State::Cancelled as usize] += cancelled;
            backlog.fresh.start = backlog.fresh.end;
            backlog.ahead.clear();
            for (_, number) in std::mem::take(&mut backlog.others) {
                let row = backlog.row(number).unwrap();
                row.stored = transition::cancel(&row.stored).unwrap();
            }
        }
    }

    /// Makes dead batches pending again.
    pub(super) fn redrive(&mut self, limit: usize, now: Timestamp) -> Vec<Backlog> {
        let dead: Vec<BatchId> = self.dead.iter().copied().take(limit).collect();
        let mut backlogs = Vec::new();
        for batch in dead {
            let stored = self.stored(batch);
            if let Some(redriven) = transition::redrive(&stored) {
                self.store(batch, redriven, now);
                backlogs.push(self.backlog(batch, now));
            }
        }
        backlogs
    }
}

/// What dispatch asks.
impl Ledger {
    pub(super) fn backlogs(&self, run: RunId) -> Vec<Backlog> {
        let run = &self.runs[self.run_index[&run]];
        let waiting = |index: &usize| {
            let backlog = &self.backlogs[*index];
            Some(Backlog {
                id: backlog.id.clone(),
                priority: run.priority,
                due: backlog.pending().next()?.0,
            })
        };
        if run.state == RunState::Running {
            run.backlogs.iter().filter_map(waiting).collect()
        } else {
            vec![]
        }
    }

    pub(super) fn page(&self, id: &BacklogId, limit: u32, now: Timestamp) -> Page {
        let mut page = Page {
            batches: vec![],
            more_due: None,
        };
        let index = self.backlog_index[id];
        let backlog = &self.backlogs[index];
        if self.runs[backlog.run].state != RunState::Running {
            return page;
        }
        for (due, number) in backlog.pending() {
            if due > now || page.batches.len() == limit as usize {
                page.more_due = Some(due);
                break;
            }
            page.batches.push(PendingBatch {
                id: batch_id(index, number),
                attempt: backlog.stored(number).attempt,
                bytes: 10,
            });
        }
        page
    }

    /// Whether a payload would be given.
    pub(super) fn waits(&self, batch: &PendingBatch) -> bool {
        let stored = self.stored(batch.id);
        self.run_of(batch.id).state == RunState::Running
            && stored.state == State::Pending
            && stored.attempt == batch.attempt
    }

    pub(super) fn record_out(&mut self, batch: BatchId, attempt: Attempt, now: Timestamp) {
        if let Some(out) = transition::record_out(&self.stored(batch), attempt) {
            self.store(batch, out, now);
        }
    }

    /// Of running runs.
    pub(super) fn waiting(&self, pipeline: &PipelineName) -> u64 {
        let counts = |backlog: &&Pending| {
            backlog.id.pipeline == *pipeline && self.runs[backlog.run].state == RunState::Running
        };
        let waiting = self.backlogs.iter().filter(counts);
        waiting.map(Pending::count).sum()
    }

    /// Whether something of this backlog should go out, but for these batches.
    pub(super) fn has_due(
        &self,
        id: &BacklogId,
        now: Timestamp,
        but: impl Fn(BatchId) -> bool,
    ) -> bool {
        let index = self.backlog_index[id];
        let backlog = &self.backlogs[index];
        self.runs[backlog.run].state == RunState::Running
            && backlog
                .pending()
                .any(|(due, number)| due <= now && !but(batch_id(index, number)))
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &BacklogId> {
        self.backlogs.iter().map(|backlog| &backlog.id)
    }
}

/// What happens to batches.
impl Ledger {
    /// A publish went through, or did although it seems to have failed. The same attempt is published
    /// twice only when it seemed so.
    pub(super) fn published(&mut self, batch: &PendingBatch, seems_failed: bool) {
        let attempt = batch.attempt.next();
        let row = self.touch(batch.id);
        let again = row
            .published
            .is_some_and(|(before, failed)| before == attempt && !failed);
        assert!(!again, "attempt {attempt} of {} went out twice", batch.id);
        row.published = Some((attempt, seems_failed));
    }

    pub(super) fn settle(&mut self, outcome: &Judged, now: Timestamp) -> Settled {
        let batch = outcome.batch;
        let stored = self.stored(batch);
        let change = transition::settle(&stored, outcome, now);
        let mut backlogs = vec![];
        let waits = change.effect == Effect::Stale && stored.state == State::Pending;
        if waits && self.is_running(batch) {
            let due = self.touch(batch).due;
            backlogs.push(self.backlog(batch, due));
        }
        if let Some(update) = change.store {
            self.store(batch, update.stored, update.due);
            if change.effect == Effect::Again {
                backlogs.push(self.backlog(batch, update.due));
            }
        }
        if let Verdict::Complete { follow_ups, .. } = &outcome.verdict
            && matches!(change.effect, Effect::Completed | Effect::CompletedLate)
        {
            for follow_up in follow_ups {
                let run = self.backlog_of(batch).run;
                let (pipeline, key) = (&follow_up.pipeline, &follow_up.key);
                backlogs.push(self.submit(run, Priority::Normal, pipeline, key, 1, now));
            }
        }
        Settled {
            batch,
            attempt: outcome.attempt,
            effect: change.effect,
            backlogs,
        }
    }

    pub(super) fn stored(&self, batch: BatchId) -> Stored {
        let (index, number) = place_of(batch);
        Stored {
            called_off: self.run_of(batch).state == RunState::Cancelled,
            ..self.backlogs[index].stored(number)
        }
    }

    pub(super) fn is_running(&self, batch: BatchId) -> bool {
        self.run_of(batch).state == RunState::Running
    }

    pub(super) fn backlog_of(&self, batch: BatchId) -> &BacklogId {
        &self.backlogs[place_of(batch).0].id
    }

    pub(super) fn count(&self, state: State) -> u64 {
        self.counts[state as usize]
    }

    /// Completed, dead or cancelled.
    pub(super) fn finished(&self) -> u64 {
        self.accepted - self.count(State::Pending) - self.count(State::Out)
    }

    /// accepted = pending + out + completed + dead + cancelled, and the counts are those of the batches.
    pub(super) fn check_conservation(&self) {
        assert_eq!(self.accepted, self.counts.iter().sum::<u64>());
        let pending: u64 = self.backlogs.iter().map(Pending::count).sum();
        assert_eq!(self.count(State::Pending), pending);
    }

    fn run_of(&self, batch: BatchId) -> &Run {
        &self.runs[self.backlogs[place_of(batch).0].run]
    }

    fn backlog(&self, batch: BatchId, due: Timestamp) -> Backlog {
        Backlog {
            id: self.backlog_of(batch).clone(),
            priority: self.run_of(batch).priority,
            due,
        }
    }

    /// From here on the batch has a row.
    fn touch(&mut self, batch: BatchId) -> &mut Row {
        let (index, number) = place_of(batch);
        self.backlogs[index].touch(number)
    }

    fn store(&mut self, batch: BatchId, stored: Stored, due: Timestamp) {
        let (index, number) = place_of(batch);
        let row = self.touch(batch);
        let (before, since) = (row.stored.state, row.due);
        row.stored = stored;
        row.due = due;
        let others = &mut self.backlogs[index].others;
        match before {
            State::Pending => assert!(others.remove(&(since, number))),
            State::Dead => assert!(self.dead.remove(&batch)),
            _ => {}
        }
        match stored.state {
            State::Pending => assert!(others.insert((due, number))),
            State::Dead => assert!(self.dead.insert(batch)),
            _ => {}
        }
        self.counts[before as usize] -= 1;
        self.counts[stored.state as usize] += 1;
    }
}

impl Pending {
    fn row(&mut self, number: u64) -> Option<&mut Row> {
        let number = usize::try_from(number).unwrap();
        self.rows.get_mut(number)?.as_mut()
    }

    fn stored(&self, number: u64) -> Stored {
        let row = self.rows.get(usize::try_from(number).unwrap());
        match row.and_then(Option::as_ref) {
            Some(row) => row.stored,
            None if self.is_fresh(number) => FRESH,
            // It was cancelled before anybody touched it.
            None => transition::cancel(&FRESH).unwrap(),
        }
    }

    fn touch(&mut self, number: u64) -> &mut Row {
        let slot = usize::try_from(number).unwrap();
        if slot >= self.rows.len() {
            self.rows.resize_with(slot + 1, || None);
        }
        if self.rows[slot].is_none() {
            assert!(self.is_fresh(number), "nobody cancelled it");
            self.ahead.insert(number);
            while self.ahead.remove(&self.fresh.start) {
                self.fresh.start += 1;
            }
            self.others.insert((self.since, number));
        }
        self.rows[slot].get_or_insert(Row {
            stored: FRESH,
            due: self.since,
            published: None,
        })
    }

    fn is_fresh(&self, number: u64) -> bool {
        self.fresh.contains(&number) && !self.ahead.contains(&number)
    }

    fn count(&self) -> u64 {
        let fresh = self.fresh.end - self.fresh.start - self.ahead.len() as u64;
        fresh + self.others.len() as u64
    }

    /// In the order of due times.
    fn pending(&self) -> impl Iterator<Item = (Timestamp, u64)> {
        let fresh = self
            .fresh
            .clone()
            .filter(|number| !self.ahead.contains(number));
        let border = (self.since, u64::MAX);
        let before = self.others.range(..=border).copied();
        let after = self.others.range(border..).copied();
        before
            .chain(fresh.map(|number| (self.since, number)))
            .chain(after)
    }
}
