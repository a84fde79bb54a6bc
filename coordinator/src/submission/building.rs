//! A run on its way into the ledger, where nobody sees it before it is whole.

use std::sync::Arc;

use shared::id::RunId;
use tokio::task::{JoinError, JoinHandle};

use super::admission::Reserved;
use crate::ledger::{LedgerError, NewBatch, SubmissionLedger};
use crate::run::Run;

/// A run that is being built up: one chunk goes into the ledger while the next one is read. Dropped in the
/// middle, because the client went away, it leaves nothing.
pub(super) struct Building {
    ledger: Arc<dyn SubmissionLedger>,
    /// `None` once it was accepted or removed.
    run: Option<RunId>,
    appending: Option<JoinHandle<Result<(), LedgerError>>>,
    /// Given back when the ledger counts the batches as pending, or has them no more.
    reserved: Reserved,
}

impl Building {
    pub(super) fn new(ledger: Arc<dyn SubmissionLedger>, run: RunId, reserved: Reserved) -> Self {
        Self {
            ledger,
            run: Some(run),
            appending: None,
            reserved,
        }
    }

    /// Where its batches are counted.
    pub(super) fn reserved(&mut self) -> &mut Reserved {
        &mut self.reserved
    }

    /// Starts to append a chunk, once the one before is in.
    pub(super) async fn append(&mut self, batches: Vec<NewBatch>) -> Result<(), LedgerError> {
        self.appended().await?;
        let Some(run) = self.run else { return Ok(()) };
        let ledger = self.ledger.clone();
        self.appending = Some(tokio::spawn(
            async move { ledger.append(run, &batches).await },
        ));
        Ok(())
    }

    /// Waits until all chunks are in.
    pub(super) async fn appended(&mut self) -> Result<(), LedgerError> {
        let Some(appending) = &mut self.appending else {
            return Ok(());
        };
        let appended = appending.await;
        self.appending = None;
        appended.unwrap_or_else(pass_on_panic)
    }

    /// Makes the run exist, or removes it.
    pub(super) async fn accept(mut self, digest: [u8; 32]) -> Result<Run, LedgerError> {
        let accepted = match (self.appended().await, self.run) {
            (Ok(()), Some(run)) => {
                shared::failpoint::reach("c.ledger.before_commit");
                self.ledger.accept(run, &digest).await
            }
            (Err(error), _) => Err(error),
            (Ok(()), None) => unreachable!("accepting and removing use the run up"),
        };
        match accepted {
            Ok(run) => {
                shared::failpoint::reach("c.ledger.committed");
                self.run = None;
                Ok(run)
            }
            Err(error) => {
                self.abandon().await;
                Err(error)
            }
        }
    }

    /// Leaves the ledger without it.
    pub(super) async fn abandon(mut self) {
        if let Some(run) = self.run.take() {
            remove(&*self.ledger, run, self.appending.take()).await;
        }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            let (ledger, appending) = (self.ledger.clone(), self.appending.take());
            let reserved = self.reserved.hand_over();
            // Not tracked: a restart removes what this could not.
            tokio::spawn(async move {
                remove(&*ledger, run, appending).await;
                drop(reserved);
            });
        }
    }
}

/// Not before the chunk at hand is in: it would come back after the run was removed.
async fn remove(
    ledger: &dyn SubmissionLedger,
    run: RunId,
    appending: Option<JoinHandle<Result<(), LedgerError>>>,
) {
    if let Some(appending) = appending {
        let _ = appending.await;
    }
    if let Err(error) = ledger.abandon(run).await {
        tracing::error!(%error, run.id = %run, "cannot remove a refused run now; the next start will");
    }
}

fn pass_on_panic<T>(error: JoinError) -> T {
    std::panic::resume_unwind(error.into_panic())
}
