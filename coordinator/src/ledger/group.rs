//! What a group of events does to the ledger: a backend reads the batches of a group, this decides each by
//! the transition table, the backend writes what came out, all in one transaction.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance};
use shared::outcome::FollowUp;

use super::tally::Tally;
use super::transition::{self, Judged, State, Stored, Update, Verdict};
use super::{Backlog, BacklogId, Effect, NewBatch, Redriven, Settled};
use crate::run::{Priority, RunState};

/// Attempts of a batch that are kept in its history: the last ones. Waiting for a limit is an attempt
/// each time, and may go on for ever.
pub(super) const KEPT_ATTEMPTS: u32 = 50;
/// Longest reason, in bytes: a word is meant.
const MAX_REASON_BYTES: usize = 255;
/// The verdict of an attempt that completed its batch.
pub(super) const COMPLETED: &str = "completed";

/// A batch of the group as it stands. `R` is how its database finds the row.
#[derive(Debug)]
pub(super) struct Known<R> {
    pub(super) row: R,
    pub(super) backlog: BacklogId,
    pub(super) priority: Priority,
    /// Where its run stands.
    pub(super) run: RunState,
    /// Pending: when it may go out. Otherwise: when the state was entered.
    pub(super) since: Timestamp,
    pub(super) stored: Stored,
}

/// What settling a group writes.
#[derive(Debug)]
pub(super) struct Changes<R> {
    /// Batches by row, each as it stands after the last outcome.
    pub(super) batches: BTreeMap<R, BatchChange>,
    /// Attempts for the history.
    pub(super) ended: Vec<Ended<R>>,
    /// New batches, and the state in which they start.
    pub(super) follow_ups: BTreeMap<RunId, (State, Vec<NewBatch>)>,
    pub(super) tally: Tally,
}

/// A batch as it is written.
#[derive(Debug)]
pub(super) struct BatchChange {
    pub(super) update: Update,
    /// How it was completed, if it was, and in time.
    pub(super) completion: Option<Completion>,
}

/// The attempt that completed a batch.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) worker: Option<Instance>,
    pub(super) took: Option<Duration>,
    pub(super) out_at: Option<Timestamp>,
}

/// An attempt that ended otherwise, or too late.
#[derive(Debug)]
pub(super) struct Ended<R> {
    pub(super) row: R,
    pub(super) attempt: Attempt,
    pub(super) verdict: String,
    pub(super) error: Option<String>,
    pub(super) how: Completion,
}

impl<R> Known<R> {
    /// Its run's batches go out: what is pending is worth telling the dispatcher.
    fn is_dispatched(&self) -> bool {
        !matches!(self.run, RunState::Paused | RunState::Cancelled)
    }

    fn backlog(&self, due: Timestamp) -> Backlog {
        Backlog {
            id: self.backlog.clone(),
            priority: self.priority,
            due,
        }
    }
}

/// Settles outcomes one after the other: a group may hold two for the same batch.
pub(super) fn settle<R: Copy + Ord>(
    mut known: HashMap<BatchId, Known<R>>,
    outcomes: &[Judged],
    now: Timestamp,
) -> (Vec<Settled>, Changes<R>) {
    let mut changes = Changes {
        batches: BTreeMap::new(),
        ended: Vec::new(),
        follow_ups: BTreeMap::new(),
        tally: Tally::default(),
    };
    let settled = outcomes
        .iter()
        .map(|outcome| {
            let (effect, backlogs) = match known.get_mut(&outcome.batch) {
                Some(known) => changes.settle(known, outcome, now),
                None => (Effect::Unknown, vec![]),
            };
            Settled {
                batch: outcome.batch,
                attempt: outcome.attempt,
                effect,
                backlogs,
            }
        })
        .collect();
    (settled, changes)
}

impl<R: Copy + Ord> Changes<R> {
    fn settle(
        &mut self,
        known: &mut Known<R>,
        outcome: &Judged,
        now: Timestamp,
    ) -> (Effect, Vec<Backlog>) {
        let change = transition::settle(&known.stored, outcome, now);
        let Some(mut update) = change.store else {
            // Told again: whoever settled it may never have heard that it did.
            let waits = change.effect == Effect::Stale && known.stored.state == State::Pending;
            let backlogs = (waits && known.is_dispatched()).then(|| known.backlog(known.since));
            return (change.effect, backlogs.into_iter().collect());
        };
        update.reason = update.reason.as_deref().map(storable_reason);
        update.error = update.error.as_deref().map(storable);
        let BacklogId { run, pipeline, .. } = &known.backlog;
        let (from, to) = (known.stored.state, update.stored.state);
        self.tally.moved(*run, pipeline, from, to, 1);
        let is_out = from == State::Out && known.stored.attempt == outcome.attempt;
        let out_at = is_out.then_some(known.since);
        known.stored = update.stored;
        known.since = update.due;

        let mut backlogs = match &outcome.verdict {
            Verdict::Complete {
                rows,
                statistics,
                follow_ups,
            } => {
                self.tally.run(*run).add_results(*rows, statistics);
                self.follow_up(known, follow_ups, now)
            }
            Verdict::Retry { .. } if change.effect == Effect::Again => {
                self.tally.run(*run).retries += 1;
                vec![]
            }
            _ => vec![],
        };
        if change.effect == Effect::Again && known.is_dispatched() {
            backlogs.push(known.backlog(update.due));
        }
        let how = Completion {
            worker: outcome.worker.clone(),
            took: outcome.took,
            out_at,
        };
        let completion = if change.effect == Effect::Completed {
            Some(how)
        } else {
            self.ended.push(Ended {
                row: known.row,
                attempt: outcome.attempt,
                verdict: update
                    .reason
                    .clone()
                    .unwrap_or_else(|| COMPLETED.to_owned()),
                error: update.error.clone(),
                how,
            });
            None
        };
        self.batches
            .insert(known.row, BatchChange { update, completion });
        (change.effect, backlogs)
    }

    /// Adds what a completed batch asks for, and gives each backlog that it falls into once. What belongs to
    /// a cancelled run starts, and ends, cancelled.
    fn follow_up(
        &mut self,
        known: &Known<R>,
        follow_ups: &[FollowUp],
        now: Timestamp,
    ) -> Vec<Backlog> {
        if follow_ups.is_empty() {
            return vec![];
        }
        let state = if known.stored.called_off {
            State::Cancelled
        } else {
            State::Pending
        };
        let run = known.backlog.run;
        let (_, batches) = self
            .follow_ups
            .entry(run)
            .or_insert_with(|| (state, Vec::new()));
        let mut backlogs: Vec<Backlog> = Vec::new();
        for follow_up in follow_ups {
            self.tally.added(run, &follow_up.pipeline, state, 1);
            batches.push(NewBatch {
                id: BatchId::generate(),
                pipeline: follow_up.pipeline.clone(),
                key: follow_up.key.clone(),
                payload: follow_up.payload.clone(),
                due: now,
            });
            let id = BacklogId {
                run,
                pipeline: follow_up.pipeline.clone(),
                key: follow_up.key.clone(),
            };
            // Follow-ups of one backlog stand together, so looking at the last one is enough to stay short.
            if backlogs.last().is_none_or(|last| last.id != id) {
                backlogs.push(Backlog {
                    id,
                    priority: known.priority,
                    due: now,
                });
            }
        }
        if !known.is_dispatched() {
            backlogs.clear();
        }
        backlogs
    }
}

/// Which batches are out now.
pub(super) fn record_out<R: Copy + Ord>(
    known: &HashMap<BatchId, Known<R>>,
    dispatched: &[(BatchId, Attempt)],
) -> (Vec<R>, Tally) {
    let attempts: HashMap<BatchId, Attempt> = dispatched.iter().copied().collect();
    let mut tally = Tally::default();
    let mut out: Vec<R> = known
        .iter()
        .filter(|(id, known)| transition::record_out(&known.stored, attempts[id]).is_some())
        .map(|(_, known)| {
            let BacklogId { run, pipeline, .. } = &known.backlog;
            tally.moved(*run, pipeline, known.stored.state, State::Out, 1);
            known.row
        })
        .collect();
    out.sort_unstable();
    (out, tally)
}

/// Which dead batches are pending again, and when each may go out.
pub(super) fn redrive<R: Copy>(
    dead: &[Known<R>],
    from: Timestamp,
    spacing: Duration,
) -> (Vec<(R, Timestamp)>, Redriven, Tally) {
    let (mut pending, mut tally) = (Vec::with_capacity(dead.len()), Tally::default());
    // Due times only grow, so the first batch of a backlog is the one that counts.
    let mut backlogs: HashMap<&BacklogId, Backlog> = HashMap::new();
    let mut due = from;
    for known in dead {
        if transition::redrive(&known.stored).is_none() {
            continue;
        }
        let BacklogId { run, pipeline, .. } = &known.backlog;
        tally.moved(*run, pipeline, known.stored.state, State::Pending, 1);
        if known.is_dispatched() {
            backlogs
                .entry(&known.backlog)
                .or_insert_with(|| known.backlog(due));
        }
        pending.push((known.row, due));
        due = due.checked_add(spacing).unwrap_or(Timestamp::MAX);
    }
    let redriven = Redriven {
        batches: u64::try_from(pending.len()).unwrap_or(u64::MAX),
        backlogs: backlogs.into_values().collect(),
    };
    (pending, redriven, tally)
}

/// Which dead batches are called off.
pub(super) fn discard<R: Copy>(dead: &[Known<R>]) -> (Vec<R>, Tally) {
    let mut tally = Tally::default();
    let discarded = dead
        .iter()
        .filter(|known| transition::discard(&known.stored).is_some())
        .map(|known| {
            let BacklogId { run, pipeline, .. } = &known.backlog;
            tally.moved(*run, pipeline, known.stored.state, State::Cancelled, 1);
            known.row
        })
        .collect();
    (discarded, tally)
}

/// A text that every database takes: PostgreSQL knows no NUL.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A reason that every index takes: PostgreSQL's know no text of more than 2,700 bytes.
pub(super) fn storable_reason(reason: &str) -> String {
    let mut reason = storable(reason);
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    reason
}
