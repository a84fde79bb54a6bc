//! Which batches go out next: a state machine without IO or clock. The shell beside it reads, publishes
//! and records.
//!
//! Every key with something pending takes its turn, one batch a turn, as long as the pipeline's window and
//! the key's own limit have room; within a key, higher priority and older runs go first. Only the heads of
//! backlogs are in memory, a page for each key, so ten million pending batches cost what a thousand cost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use shared::config::PipelineConfig;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};

use super::key::{KeyState, Next, NextRead};
use crate::ledger::{Backlog, BacklogId, OutBatch, Page, PendingBatch};
use crate::run::Priority;

/// Fewest and most batches that are read ahead for one key.
const PAGE_MIN: u32 = 8;
const PAGE_MAX: u32 = 512;
/// How long to leave a backlog alone whose page held nothing but batches that are out.
const STALE_PAGE_PAUSE: Duration = Duration::from_millis(50);

/// A batch that is to be published now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    /// From which backlog.
    pub backlog: BacklogId,
    /// Of which priority.
    pub priority: Priority,
    /// Which batch, and the attempt before this one.
    pub batch: PendingBatch,
}

/// A page that the dispatcher needs from the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Of which backlog.
    pub backlog: BacklogId,
    /// How many batches.
    pub limit: u32,
}

/// The state of all windows and the heads of all backlogs.
#[derive(Debug)]
pub struct Dispatcher {
    pipelines: BTreeMap<PipelineName, Pipeline>,
    /// What is out or about to be: each batch takes its place in the windows until it is settled.
    out: HashMap<BatchId, Out>,
    /// Backlogs that become due later.
    timers: BinaryHeap<Reverse<(Timestamp, PipelineName, Key)>>,
}

#[derive(Debug)]
struct Out {
    pipeline: PipelineName,
    key: Key,
    /// The attempt before the one that is out; `None` for what was out before a restart.
    after: Option<Attempt>,
    /// Whose page may still show it, because the ledger does not have it as out yet.
    unrecorded: Option<(Priority, RunId)>,
}

#[derive(Debug)]
struct Pipeline {
    config: PipelineConfig,
    slots: u32,
    out: u32,
    keys: HashMap<Key, KeyState>,
    /// Keys that may have something to give, in turn. A key is in here at most once.
    turns: VecDeque<Key>,
}

impl Dispatcher {
    /// Nothing is pending and nobody works.
    #[must_use]
    pub fn new(pipelines: &BTreeMap<PipelineName, PipelineConfig>) -> Self {
        let pipeline = |config: &PipelineConfig| Pipeline {
            config: config.clone(),
            slots: 0,
            out: 0,
            keys: HashMap::new(),
            turns: VecDeque::new(),
        };
        Self {
            pipelines: pipelines
                .iter()
                .map(|(name, config)| (name.clone(), pipeline(config)))
                .collect(),
            out: HashMap::new(),
            timers: BinaryHeap::new(),
        }
    }

    /// At the start: a batch is out from before. `false` when its pipeline is not configured any more.
    pub fn was_out(&mut self, batch: OutBatch) -> bool {
        let Some(pipeline) = self.pipelines.get_mut(&batch.pipeline) else {
            return false;
        };
        pipeline.out += 1;
        pipeline.keys.entry(batch.key.clone()).or_default().out += 1;
        self.out.insert(
            batch.id,
            Out {
                pipeline: batch.pipeline,
                key: batch.key,
                after: None,
                unrecorded: None,
            },
        );
        true
    }

    /// A backlog has something pending. `false` when its pipeline is not configured (any more).
    pub fn pending(&mut self, backlog: &Backlog, now: Timestamp) -> bool {
        let Backlog { id, priority, due } = backlog;
        let Some(pipeline) = self.pipelines.get_mut(&id.pipeline) else {
            return false;
        };
        let key = pipeline.keys.entry(id.key.clone()).or_default();
        let heads = key
            .backlogs
            .entry((Reverse(*priority), id.run))
            .or_default();
        let known = heads.more_due;
        heads.more_due = Some(known.map_or(*due, |known| known.min(*due)));
        if *due <= now {
            pipeline.give_turn(&id.key);
        } else if known.is_none_or(|known| *due < known) {
            self.timers
                .push(Reverse((*due, id.pipeline.clone(), id.key.clone())));
        }
        true
    }

    /// The fleet changed.
    pub fn slots(&mut self, slots: &HashMap<PipelineName, u32>) {
        for (name, pipeline) in &mut self.pipelines {
            pipeline.slots = slots.get(name).copied().unwrap_or_default();
        }
    }

    /// A batch left the windows.
    pub fn settled(&mut self, batch: BatchId) {
        let Some(out) = self.out.remove(&batch) else {
            return;
        };
        self.forget_unrecorded(&out);
        if let Some(pipeline) = self.pipelines.get_mut(&out.pipeline) {
            pipeline.leave(&out.key);
        }
    }

    /// The ledger has these attempts as out: no page shows them any more.
    pub fn recorded(&mut self, batches: &[BatchId]) {
        for batch in batches {
            if let Some(out) = self.out.get_mut(batch) {
                let recorded = Out {
                    pipeline: out.pipeline.clone(),
                    key: out.key.clone(),
                    after: out.after,
                    unrecorded: out.unrecorded.take(),
                };
                self.forget_unrecorded(&recorded);
            }
        }
    }

    /// Publishing failed: the batch goes back to where it came from.
    pub fn unpublished(&mut self, dispatch: Dispatch) {
        let Some(out) = self.take_back(&dispatch) else {
            return; // Settled meanwhile: an earlier publish of the same attempt had worked.
        };
        if let Some(pipeline) = self.pipelines.get_mut(&out.pipeline) {
            let key = pipeline.keys.entry(out.key.clone()).or_default();
            let slot = (Reverse(dispatch.priority), dispatch.backlog.run);
            key.backlogs
                .entry(slot)
                .or_default()
                .batches
                .push_front(dispatch.batch);
            pipeline.leave(&out.key);
        }
    }

    /// The batch does not wait for this attempt any more: it was settled since it was read. What the ledger
    /// has of its backlog now is read again.
    pub fn gone(&mut self, dispatch: &Dispatch, now: Timestamp) {
        let Some(out) = self.take_back(dispatch) else {
            return;
        };
        let Dispatch {
            backlog, priority, ..
        } = dispatch;
        self.pending(
            &Backlog {
                id: backlog.clone(),
                priority: *priority,
                due: now,
            },
            now,
        );
        if let Some(pipeline) = self.pipelines.get_mut(&out.pipeline) {
            pipeline.leave(&out.key);
        }
    }

    /// Ends a batch's being out, unless a later attempt of it is out by now.
    fn take_back(&mut self, dispatch: &Dispatch) -> Option<Out> {
        let current = self.out.get(&dispatch.batch.id)?;
        if current.after != Some(dispatch.batch.attempt) {
            return None;
        }
        let out = self.out.remove(&dispatch.batch.id)?;
        self.forget_unrecorded(&out);
        Some(out)
    }

    /// The answer to a [`Read`].
    pub fn read(&mut self, backlog: &BacklogId, page: Page, now: Timestamp) {
        let Some(pipeline) = self.pipelines.get_mut(&backlog.pipeline) else {
            return;
        };
        let Some(key) = pipeline.keys.get_mut(&backlog.key) else {
            return;
        };
        let Some((slot, heads)) = key
            .backlogs
            .iter_mut()
            .find(|((_, run), _)| *run == backlog.run)
        else {
            return;
        };
        let slot = *slot;
        heads.reading = false;
        // While the page was read, batches went out, and some that could not be published came back.
        let back: Vec<BatchId> = heads.batches.iter().map(|batch| batch.id).collect();
        let is_new =
            |batch: &PendingBatch| !self.out.contains_key(&batch.id) && !back.contains(&batch.id);
        let (before, read) = (heads.batches.len(), page.batches.len());
        heads
            .batches
            .extend(page.batches.into_iter().filter(is_new));
        let mut found = page.more_due;
        if read > 0 && heads.batches.len() == before && found.is_some_and(|due| due <= now) {
            // A whole page of batches whose news is still on its way: reading on at once would only spin.
            found = now.checked_add(STALE_PAGE_PAUSE).ok();
        }
        heads.more_due = match (heads.more_due, found) {
            (Some(known), Some(found)) => Some(known.min(found)),
            (known, found) => known.or(found),
        };
        let wake = heads.more_due;
        if heads.batches.is_empty() && heads.more_due.is_none() && heads.unrecorded == 0 {
            key.backlogs.remove(&slot);
        }
        match wake {
            Some(due) if due > now => {
                self.timers.push(Reverse((
                    due,
                    backlog.pipeline.clone(),
                    backlog.key.clone(),
                )));
            }
            _ => {}
        }
        pipeline.give_turn(&backlog.key);
        pipeline.forget_if_idle(&backlog.key);
    }

    /// Wakes the backlogs that are due and returns the next time at which one will be.
    pub fn wake(&mut self, now: Timestamp) -> Option<Timestamp> {
        while let Some(Reverse((due, ..))) = self.timers.peek() {
            if *due > now {
                return Some(*due);
            }
            if let Some(Reverse((_, pipeline, key))) = self.timers.pop()
                && let Some(pipeline) = self.pipelines.get_mut(&pipeline)
            {
                pipeline.give_turn(&key);
            }
        }
        None
    }

    /// The pages that are needed before the next batches can be taken fairly: of the keys whose turn is
    /// next and whose heads are not in memory. Answer each with [`Self::read`], then take; as long as
    /// either gives something there may be more.
    pub fn reads(&mut self, now: Timestamp) -> Vec<Read> {
        let mut reads = Vec::new();
        for (name, pipeline) in &mut self.pipelines {
            let mut room = pipeline.window().saturating_sub(pipeline.out);
            let (page, limit) = (pipeline.page(), pipeline.config.max_in_flight_per_key);
            for key in &pipeline.turns {
                let Some(state) = pipeline.keys.get_mut(key) else {
                    continue;
                };
                if room == 0 {
                    break;
                }
                if limit.is_some_and(|limit| state.out >= limit) {
                    continue;
                }
                match state.next_read(now, page) {
                    NextRead::Page(run, limit) => {
                        let backlog = BacklogId {
                            run,
                            pipeline: name.clone(),
                            key: key.clone(),
                        };
                        reads.push(Read { backlog, limit });
                        room -= 1;
                    }
                    NextRead::InMemory => room -= 1,
                    NextRead::Nothing => {}
                }
            }
        }
        reads
    }

    /// Takes at most `limit` batches that may go out now.
    pub fn take(&mut self, now: Timestamp, limit: usize) -> Vec<Dispatch> {
        let mut taken = Vec::new();
        for (name, pipeline) in &mut self.pipelines {
            let mut unread = Vec::new();
            while taken.len() < limit && pipeline.out < pipeline.window() {
                let Some(key) = pipeline.turns.pop_front() else {
                    break;
                };
                let limit = pipeline.config.max_in_flight_per_key;
                let Some(state) = pipeline.keys.get_mut(&key) else {
                    continue;
                };
                state.has_turn = false;
                if limit.is_some_and(|limit| state.out >= limit) {
                    continue; // Its next turn comes when one of its batches is settled.
                }
                match state.next(now) {
                    Next::Batch(priority, run, batch) => {
                        state.out += 1;
                        pipeline.out += 1;
                        let out = Out {
                            pipeline: name.clone(),
                            key: key.clone(),
                            after: Some(batch.attempt),
                            unrecorded: Some((priority, run)),
                        };
                        self.out.insert(batch.id, out);
                        let backlog = BacklogId {
                            run,
                            pipeline: name.clone(),
                            key: key.clone(),
                        };
                        taken.push(Dispatch {
                            backlog,
                            priority,
                            batch,
                        });
                        pipeline.give_turn(&key);
                    }
                    Next::Unread => unread.push(key),
                    Next::Nothing => pipeline.forget_if_idle(&key),
                }
            }
            for key in unread {
                pipeline.give_turn(&key);
            }
        }
        taken
    }

    /// How many batches are out or about to be.
    #[must_use]
    pub fn out(&self) -> usize {
        self.out.len()
    }

    fn forget_unrecorded(&mut self, out: &Out) {
        let Some((priority, run)) = out.unrecorded else {
            return;
        };
        let slot = (Reverse(priority), run);
        if let Some(pipeline) = self.pipelines.get_mut(&out.pipeline)
            && let Some(key) = pipeline.keys.get_mut(&out.key)
            && let Some(heads) = key.backlogs.get_mut(&slot)
        {
            heads.unrecorded -= 1;
            if heads.is_spent() {
                key.backlogs.remove(&slot);
            }
        }
    }
}

impl Pipeline {
    /// How many batches may be out: enough for the live slots and the look-ahead, within bounds.
    fn window(&self) -> u32 {
        let wanted = self.slots.saturating_mul(self.config.look_ahead);
        wanted.clamp(self.config.window_min, self.config.window_max)
    }

    /// A fair share of the window for each key that waits.
    fn page(&self) -> u32 {
        let keys = u32::try_from(self.turns.len() + 1).unwrap_or(u32::MAX);
        (2 * self.window() / keys).clamp(PAGE_MIN, PAGE_MAX)
    }

    fn give_turn(&mut self, key: &Key) {
        if let Some(state) = self.keys.get_mut(key)
            && !state.has_turn
            && !state.backlogs.is_empty()
        {
            state.has_turn = true;
            self.turns.push_back(key.clone());
        }
    }

    /// One batch of the key is not out any more.
    fn leave(&mut self, key: &Key) {
        self.out -= 1;
        if let Some(state) = self.keys.get_mut(key) {
            state.out -= 1;
        }
        self.give_turn(key);
        self.forget_if_idle(key);
    }

    fn forget_if_idle(&mut self, key: &Key) {
        if self
            .keys
            .get(key)
            .is_some_and(|state| state.out == 0 && state.backlogs.is_empty() && !state.has_turn)
        {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "dispatcher_tests.rs"]
mod tests;
