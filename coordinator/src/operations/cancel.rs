//! Cancels the pending batches of cancelled runs, a chunk at a time, so that a run of millions does not
//! keep everybody else from the ledger. A restart goes on where this one stopped: the ledger knows which
//! runs are not through.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shared::control::INTERVAL;
use shared::id::RunId;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ledger::{LedgerError, OperationsLedger};

/// Pending batches that one transaction cancels. A million of them take a hundred transactions, between
/// which outcomes are settled.
const CHUNK: u32 = 10_000;
/// How often to look although nobody rang: whoever cancels and gets no answer rings too early, perhaps.
const LOOK: Duration = Duration::from_mins(1);
/// How long to leave a ledger alone that did not answer.
const LEDGER_PAUSE: Duration = Duration::from_millis(500);

/// The stage.
pub struct CancelStage {
    /// Where batches are cancelled.
    pub ledger: Arc<dyn OperationsLedger>,
    /// Rung when a run was cancelled.
    pub cancelled: Arc<Notify>,
    /// Passes on which cancelled runs still have batches pending or out.
    pub cancelling: watch::Sender<Vec<RunId>>,
    /// Long operations, waited for at the end.
    pub tasks: TaskTracker,
    /// Ends the stage after the chunk at hand.
    pub draining: CancellationToken,
}

impl CancelStage {
    /// Runs until draining.
    pub async fn run(self) -> Result<(), Infallible> {
        while !self.draining.is_cancelled() {
            let pause = match self.look().await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(%error, "cannot cancel batches now, trying again");
                    LEDGER_PAUSE
                }
            };
            tokio::select! {
                () = self.cancelled.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.draining.cancelled() => {}
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
        Ok(())
    }

    /// Cancels what is pending, and says when to look again: soon while batches are out, because their outcomes
    /// end the cancelling.
    async fn look(&self) -> Result<Duration, LedgerError> {
        let mut pending = self.ledger.cancelling().await?;
        self.tell(&pending);
        // A chunk of each in turn: a small run does not wait for a large one.
        while !pending.is_empty() && !self.draining.is_cancelled() {
            let mut left = Vec::new();
            for run in pending {
                let cancelled = self
                    .ledger
                    .cancel_pending(run, CHUNK, Timestamp::now())
                    .await?;
                metrics::counter!("tidegate_cancelled_total").increment(cancelled);
                if cancelled > 0 {
                    left.push(run);
                }
            }
            pending = left;
        }
        let out = self.ledger.cancelling().await?;
        self.tell(&out);
        Ok(if out.is_empty() { LOOK } else { INTERVAL })
    }

    fn tell(&self, runs: &[RunId]) {
        self.cancelling.send_if_modified(|told| {
            let news = told != runs;
            runs.clone_into(told);
            news
        });
    }
}
