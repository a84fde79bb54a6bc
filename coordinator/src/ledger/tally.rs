//! What a transaction changes in the counters of runs and pipelines. Batches are moved and added, never
//! counted by hand, so that `accepted = pending + out + completed + dead + cancelled` holds by construction.

use std::collections::BTreeMap;

use shared::id::RunId;
use shared::name::PipelineName;
use shared::outcome::Statistics;

use super::transition::State;

/// By how much the counters change. Sorted, so that every transaction takes its locks in the same order.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) runs: BTreeMap<RunId, RunChange>,
    pub(super) pipelines: BTreeMap<PipelineName, Counts>,
}

/// What changes in a run.
#[derive(Debug, Default)]
pub(super) struct RunChange {
    pub(super) counts: Counts,
    pub(super) retries: i64,
    pub(super) rows: u64,
    pub(super) statistics: Statistics,
}

/// By how much the number of batches in each state changes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) pending: i64,
    pub(super) out: i64,
    pub(super) completed: i64,
    pub(super) dead: i64,
    pub(super) cancelled: i64,
}

impl Tally {
    /// Batches of a run and pipeline that change their state.
    pub(super) fn moved(
        &mut self,
        run: RunId,
        pipeline: &PipelineName,
        from: State,
        to: State,
        batches: i64,
    ) {
        self.added(run, pipeline, from, -batches);
        self.added(run, pipeline, to, batches);
    }

    /// Batches of a run and pipeline that are new.
    pub(super) fn added(
        &mut self,
        run: RunId,
        pipeline: &PipelineName,
        state: State,
        batches: i64,
    ) {
        *self.run(run).counts.of(state) += batches;
        // Most often the name is there already.
        match self.pipelines.get_mut(pipeline) {
            Some(counts) => *counts.of(state) += batches,
            None => {
                let mut counts = Counts::default();
                *counts.of(state) += batches;
                self.pipelines.insert(pipeline.clone(), counts);
            }
        }
    }

    pub(super) fn run(&mut self, run: RunId) -> &mut RunChange {
        self.runs.entry(run).or_default()
    }
}

impl RunChange {
    /// What a completed batch stands for. Sums that no number can hold stay at the largest one.
    pub(super) fn add_results(&mut self, rows: u64, statistics: &Statistics) {
        self.rows = self.rows.saturating_add(rows);
        for (name, count) in statistics {
            let sum = self
                .statistics
                .entry(super::group::storable(name))
                .or_default();
            *sum = sum.saturating_add(*count);
        }
    }
}

impl Counts {
    /// Batches that are new, whatever their state.
    pub(super) fn accepted(self) -> i64 {
        self.pending + self.out + self.completed + self.dead + self.cancelled
    }

    fn of(&mut self, state: State) -> &mut i64 {
        match state {
            State::Pending => &mut self.pending,
            State::Out => &mut self.out,
            State::Completed => &mut self.completed,
            State::Dead => &mut self.dead,
            State::Cancelled => &mut self.cancelled,
        }
    }
}
