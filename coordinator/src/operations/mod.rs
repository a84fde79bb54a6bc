//! Operations: what people do to runs, pipelines and dead batches while they are at work.
//!
//! Each one changes the ledger first and tells the dispatcher after that, and each may be repeated. What
//! takes longer than one transaction goes on in pieces: the pending batches of a cancelled run are
//! cancelled by [`cancel`], and [`control`] tells the workers which runs need no work any more.

pub mod cancel;
pub mod control;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::id::RunId;
use shared::name::PipelineName;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::ToSchema;

use crate::ledger::{DeadFilter, LedgerError, OperationsLedger, OperatorViews};
use crate::notice::Notice;
use crate::run::{Priority, Run, RunState};

/// Dead batches that one transaction redrives or discards: small enough that dispatch and settlement get
/// their turn in between.
const CHUNK: u32 = 2_000;
/// Most dead batches a second that a redrive may make due; more is the same as all at once.
pub const MAX_RATE: u32 = 100_000;

/// The operator's hands.
#[derive(Clone)]
pub struct Operations {
    /// Where it is done.
    pub ledger: Arc<dyn OperationsLedger>,
    /// Counts what would be done.
    pub views: Arc<dyn OperatorViews>,
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
    /// Wakes [`cancel::CancelStage`].
    pub cancelled: Arc<Notify>,
    /// Work that goes on when nobody waits for its answer any more.
    pub tasks: TaskTracker,
    /// Ends it between two chunks.
    pub draining: CancellationToken,
}

/// Why a run was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// There is no such run.
    #[error("there is no such run")]
    UnknownRun,
    /// It needs nothing more.
    #[error("the run is {0} already: nothing of it is pending or out")]
    Finished(RunState),
    /// The ledger did not do it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What a redrive or discard did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Handled {
    /// How many batches; with `dry_run`: how many match, those of cancelled runs included, which a redrive
    /// leaves.
    pub batches: u64,
    /// Nothing was changed.
    pub dry_run: bool,
    /// The coordinator stops: there may be more, and doing it again does the rest.
    pub interrupted: bool,
}

impl Operations {
    /// Calls a run off. Nothing more of it goes out from now on, and its pending batches are cancelled one
    /// chunk after another. Cancelling a cancelled run is no error.
    pub async fn cancel(&self, run: RunId) -> Result<Run, OperationError> {
        let this = self.clone();
        self.finish(async move {
            let run = this.ledger.cancel(run, Timestamp::now()).await;
            // Also without an answer: it may be cancelled all the same.
            this.cancelled.notify_one();
            let run = run?.ok_or(OperationError::UnknownRun)?;
            if run.state != RunState::Cancelled {
                return Err(OperationError::Finished(run.state));
            }
            tracing::info!(run.id = %run.run, pending = run.batches.pending, out = run.batches.out, "run cancelled");
            this.tell(Notice::Stopped(run.run)).await;
            Ok(run)
        })
        .await
    }

    /// Lets nothing more of a run go out until it is resumed. What is out is finished.
    pub async fn pause(&self, run: RunId) -> Result<Run, OperationError> {
        let this = self.clone();
        self.finish(async move {
            let run = unfinished(this.ledger.pause(run, true).await?)?;
            tracing::info!(run.id = %run.run, "run paused");
            this.tell(Notice::Stopped(run.run)).await;
            Ok(run)
        })
        .await
    }

    /// Lets a paused run go on.
    pub async fn resume(&self, run: RunId) -> Result<Run, OperationError> {
        let this = self.clone();
        self.finish(async move {
            let run = unfinished(this.ledger.pause(run, false).await?)?;
            tracing::info!(run.id = %run.run, "run resumed");
            this.tell(Notice::Changed(run.run)).await;
            Ok(run)
        })
        .await
    }

    /// Changes which of a key's runs goes first.
    pub async fn prioritize(&self, run: RunId, priority: Priority) -> Result<Run, OperationError> {
        let this = self.clone();
        self.finish(async move {
            let run = unfinished(this.ledger.prioritize(run, priority).await?)?;
            tracing::info!(run.id = %run.run, %priority, "run has another priority");
            this.tell(Notice::Changed(run.run)).await;
            Ok(run)
        })
        .await
    }

    /// Lets nothing of a pipeline go out, or lets it go on.
    pub async fn pause_pipeline(
        &self,
        pipeline: &PipelineName,
        paused: bool,
    ) -> Result<(), LedgerError> {
        let (this, pipeline) = (self.clone(), pipeline.clone());
        self.finish(async move {
            this.ledger.pause_pipeline(&pipeline, paused).await?;
            tracing::info!(%pipeline, paused, "pipeline paused or resumed");
            this.tell(Notice::PipelinePaused(pipeline, paused)).await;
            Ok(())
        })
        .await
    }

    /// What a redrive or discard with this filter would do.
    pub async fn matching(&self, filter: &DeadFilter) -> Result<Handled, LedgerError> {
        Ok(Handled {
            batches: self.views.count_dead(filter).await?,
            dry_run: true,
            interrupted: false,
        })
    }

    /// Makes dead batches pending again: at once, or so many a second. Those of cancelled runs stay dead.
    pub async fn redrive(
        &self,
        filter: DeadFilter,
        rate: Option<u32>,
    ) -> Result<Handled, LedgerError> {
        let this = self.clone();
        self.finish(async move { this.redrive_all(&filter, rate).await })
            .await
    }

    /// Calls dead batches off for good.
    pub async fn discard(&self, filter: DeadFilter) -> Result<Handled, LedgerError> {
        let this = self.clone();
        self.finish(async move { this.discard_all(&filter).await })
            .await
    }

    async fn redrive_all(
        &self,
        filter: &DeadFilter,
        rate: Option<u32>,
    ) -> Result<Handled, LedgerError> {
        let spacing = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1));
        let filter = &dead_until_now(filter);
        let mut from = Timestamp::now();
        let mut batches = 0;
        loop {
            let redriven = self.ledger.redrive(filter, CHUNK, from, spacing).await?;
            batches += redriven.batches;
            if !redriven.backlogs.is_empty() {
                self.tell(Notice::Pending(redriven.backlogs)).await;
            }
            // A chunk may be short although there are more: what became of a batch since it was chosen is seen.
            let done = redriven.batches == 0;
            if done || self.draining.is_cancelled() {
                tracing::info!(batches, "dead batches redriven");
                metrics::counter!("tidegate_redriven_total").increment(batches);
                return Ok(Handled {
                    batches,
                    dry_run: false,
                    interrupted: !done,
                });
            }
            from = from.checked_add(spacing * CHUNK).unwrap_or(Timestamp::MAX);
        }
    }

    async fn discard_all(&self, filter: &DeadFilter) -> Result<Handled, LedgerError> {
        let filter = &dead_until_now(filter);
        let mut batches = 0;
        loop {
            let discarded = self.ledger.discard(filter, CHUNK, Timestamp::now()).await?;
            batches += discarded;
            let done = discarded == 0;
            if done || self.draining.is_cancelled() {
                tracing::info!(batches, "dead batches discarded");
                metrics::counter!("tidegate_discarded_total").increment(batches);
                return Ok(Handled {
                    batches,
                    dry_run: false,
                    interrupted: !done,
                });
            }
        }
    }

    /// In a task of its own, so that it is not left half done, or untold, because a client went away.
    async fn finish<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let working = self.tasks.spawn(work);
        working
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    async fn tell(&self, notice: Notice) {
        // Only a stopping coordinator has no dispatcher; the next one reads the ledger.
        let _ = self.notices.send(notice).await;
    }
}

fn unfinished(run: Option<Run>) -> Result<Run, OperationError> {
    let run = run.ok_or(OperationError::UnknownRun)?;
    match run.state {
        RunState::Running | RunState::Paused => Ok(run),
        RunState::Completed | RunState::Cancelled => Err(OperationError::Finished(run.state)),
    }
}

/// What dies again while a redrive goes on is not redriven by it: it would never end.
fn dead_until_now(filter: &DeadFilter) -> DeadFilter {
    let now = Timestamp::now();
    let before = Some(filter.before.map_or(now, |before| before.min(now)));
    DeadFilter {
        before,
        ..filter.clone()
    }
}

#[cfg(test)]
mod tests;
