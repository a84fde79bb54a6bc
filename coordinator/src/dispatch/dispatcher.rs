//! Which batches go out next: a state machine without IO or clock. The shell beside it reads, publishes
//! and records.
//!
//! Every key with something pending takes its turn, as long as the pipeline's window and the key's own limit
//! have room; within a key, higher priority and older runs go first. Only the heads of backlogs are in memory,
//! a page for each key, so ten million pending batches cost what a thousand cost.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use shared::config::PipelineConfig;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};

use super::pipeline::Pipeline;
use super::places::{Place, Places};
use crate::ledger::{Backlog, BacklogId, OutBatch, Page, PendingBatch};
use crate::run::Priority;

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

/// What a pipeline has for the shell.
#[derive(Debug, Default)]
pub struct Taken {
    /// To publish.
    pub batches: Vec<Dispatch>,
    /// To read. Answer each with [`Dispatcher::page`] before telling anything else, and take again.
    pub reads: Vec<Read>,
}

/// The state of all windows and the heads of all backlogs.
#[derive(Debug)]
pub struct Dispatcher {
    pipelines: BTreeMap<PipelineName, Pipeline>,
    places: Places,
}

/// What happened.
impl Dispatcher {
    /// Nothing is pending and nobody works.
    #[must_use]
    pub fn new(pipelines: &BTreeMap<PipelineName, PipelineConfig>) -> Self {
        let pipeline =
            |(name, config): (&PipelineName, _)| (name.clone(), Pipeline::new(name, config));
        Self {
            pipelines: pipelines.iter().map(pipeline).collect(),
            places: Places::default(),
        }
    }

    /// At the start: a batch is out from before. `false` when its pipeline is not configured any more.
    pub fn was_out(&mut self, batch: OutBatch) -> bool {
        let Some(pipeline) = self.pipelines.get_mut(&batch.pipeline) else {
            return false;
        };
        pipeline.was_out(batch.key.clone());
        self.places.keep(batch.id, batch.pipeline, batch.key);
        true
    }

    /// A backlog has something pending. `false` when its pipeline is not configured (any more).
    pub fn pending(&mut self, backlog: &Backlog, now: Timestamp) -> bool {
        let pipeline = self.pipelines.get_mut(&backlog.id.pipeline);
        pipeline
            .map(|pipeline| pipeline.pending(backlog, now))
            .is_some()
    }

    /// The fleet changed.
    pub fn slots(&mut self, slots: &HashMap<PipelineName, u32>) {
        for (name, pipeline) in &mut self.pipelines {
            pipeline.window.slots = slots.get(name).copied().unwrap_or_default();
        }
    }

    /// An attempt left the windows.
    pub fn settled(&mut self, batch: BatchId, attempt: Attempt) {
        if let Some(place) = self.places.settle(batch, attempt) {
            self.leave(&place);
        }
    }

    /// The ledger has these attempts as out: no page shows them any more.
    pub fn recorded(&mut self, attempts: &[(BatchId, Attempt)]) {
        for (batch, attempt) in attempts {
            if let Some((place, run)) = self.places.recorded(*batch, *attempt)
                && let Some(pipeline) = self.pipelines.get_mut(&place.pipeline)
            {
                pipeline.recorded(&place.key, run);
            }
        }
    }

    /// A batch did not go out: publishing failed, or it does not wait for this attempt any more. What the ledger
    /// has of its backlog now is read again.
    pub fn returned(&mut self, dispatch: &Dispatch, now: Timestamp) {
        let Some(place) = self.places.take_back(dispatch) else {
            return; // Settled meanwhile: an earlier publish of the same attempt had worked.
        };
        let backlog = Backlog {
            id: dispatch.backlog.clone(),
            priority: dispatch.priority,
            due: now,
        };
        self.pending(&backlog, now);
        self.leave(&place);
    }

    /// A run was paused or cancelled, or what is known of it does not hold any more: nothing of it goes out
    /// until something of it is pending again.
    pub fn drop_run(&mut self, run: RunId) {
        for pipeline in self.pipelines.values_mut() {
            pipeline.drop_run(run);
        }
    }

    /// A pipeline was paused, or goes on.
    pub fn pause(&mut self, pipeline: &PipelineName, paused: bool) {
        if let Some(pipeline) = self.pipelines.get_mut(pipeline) {
            pipeline.window.paused = paused;
        }
    }

    /// The batches of this key, or of all keys, stay until then. A time that has passed lets them go on.
    pub fn park(
        &mut self,
        pipeline: &PipelineName,
        key: Option<&Key>,
        until: Timestamp,
        now: Timestamp,
    ) {
        if let Some(pipeline) = self.pipelines.get_mut(pipeline) {
            match key {
                Some(key) => pipeline.park(key, until, now),
                None => pipeline.window.park(until, now),
            }
        }
    }

    /// So many batches of running runs are pending in a pipeline that others feed.
    pub fn downstream(&mut self, name: &PipelineName, pending: u64) {
        let out = |pipeline: &Pipeline| u64::from(pipeline.window.out);
        let waiting = pending + self.pipelines.get(name).map(out).unwrap_or_default();
        for pipeline in self.pipelines.values_mut() {
            pipeline.downstream(name, waiting);
        }
    }

    /// What the ledger has as out, to compare: gives the batches whose places were freed, because the ledger did
    /// not have them this time and the time before.
    pub fn compare(&mut self, outs: &HashSet<BatchId>) -> Vec<BatchId> {
        let lost = self.places.compare(outs);
        for (_, place) in &lost {
            self.leave(place);
        }
        lost.into_iter().map(|(batch, _)| batch).collect()
    }

    /// The answer to a [`Read`].
    pub fn page(&mut self, read: &Read, page: Page, now: Timestamp) {
        if let Some(pipeline) = self.pipelines.get_mut(&read.backlog.pipeline) {
            pipeline.page(read, page, &self.places, now);
        }
    }
}

/// What to do.
impl Dispatcher {
    /// Gives a turn to what is due.
    pub fn wake(&mut self, now: Timestamp) {
        for pipeline in self.pipelines.values_mut() {
            pipeline.wake(now);
        }
    }

    /// When to wake it next.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        let due = |pipeline: &Pipeline| pipeline.next_due();
        self.pipelines.values().filter_map(due).min()
    }

    /// Takes at most `limit` batches of a pipeline that may go out now. There may be more as long as it gives
    /// anything.
    pub fn take(&mut self, name: &PipelineName, now: Timestamp, limit: u32) -> Taken {
        // Taken out for a moment, so that it can look at the others.
        let Some(mut pipeline) = self.pipelines.remove(name) else {
            return Taken::default();
        };
        let downstream: Vec<&Pipeline> = pipeline
            .demand
            .feeds()
            .filter_map(|name| self.pipelines.get(name))
            .collect();
        let busy = |key: &Key| downstream.iter().any(|pipeline| pipeline.knows(key));
        let taken = pipeline.take(now, limit, busy, &mut self.places);
        self.pipelines.insert(name.clone(), pipeline);
        taken
    }

    /// The pipelines whose backlog decides what others may send them, and above which number it makes no
    /// difference any more. Answer each with [`Self::downstream`].
    #[must_use]
    pub fn looks(&self) -> BTreeMap<PipelineName, u64> {
        let mut looks = BTreeMap::new();
        for pipeline in self
            .pipelines
            .values()
            .filter(|pipeline| !pipeline.is_idle())
        {
            for name in pipeline.demand.feeds() {
                let enough = looks.entry(name.clone()).or_default();
                *enough = pipeline.demand.enough().max(*enough);
            }
        }
        looks
    }

    /// How many batches are out or about to be.
    #[must_use]
    pub fn out(&self) -> usize {
        self.places.len()
    }

    fn leave(&mut self, place: &Place) {
        if let Some(pipeline) = self.pipelines.get_mut(&place.pipeline) {
            if let Some(run) = place.unrecorded {
                pipeline.recorded(&place.key, run);
            }
            pipeline.leave(&place.key);
        }
    }
}

#[cfg(test)]
impl Dispatcher {
    /// Batches in memory.
    pub(super) fn heads(&self) -> usize {
        self.pipelines.values().map(Pipeline::heads).sum()
    }

    pub(super) fn room(&self, pipeline: &PipelineName, now: Timestamp) -> u32 {
        self.pipelines[pipeline].window.room(now)
    }

    /// Nothing is remembered, and every count is zero.
    pub(super) fn is_idle(&self) -> bool {
        self.pipelines.values().all(Pipeline::is_clean)
    }
}
