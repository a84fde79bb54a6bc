//! A run on its way into the ledger, where nobody sees it before it is whole.

use std::sync::Arc;

use shared::backoff::Backoff;
use shared::id::RunId;
use tokio::task::{JoinError, JoinHandle};

use super::admission::Reserved;
use crate::ledger::{LedgerError, NewBatch, SubmissionLedger};
use crate::run::Run;

/// How often the ledger is asked to take something: a connection that breaks costs nobody a submission. What
/// it has taken already, it does not take twice.
const TRIES: u32 = 3;

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
        self.appending = Some(tokio::spawn(async move {
            persistently(|| ledger.append(run, &batches)).await
        }));
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
                persistently(|| self.ledger.accept(run, &digest)).await
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

    /// Leaves the ledger without it: now, or, when that fails or nobody waits for it, as soon as the ledger is
    /// there again. Its idempotency key is taken until then.
    pub(super) async fn abandon(mut self) {
        // Not before the chunk at hand is in: it would come back after the run was removed.
        let _ = self.appended().await;
        if let Some(run) = self.run
            && remove(&*self.ledger, run).await.is_ok()
        {
            self.run = None;
        }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        let Some(run) = self.run.take() else { return };
        let (ledger, appending) = (self.ledger.clone(), self.appending.take());
        let reserved = self.reserved.hand_over();
        // Not waited for when the process ends: the next start removes what this could not.
        tokio::spawn(async move {
            if let Some(appending) = appending {
                let _ = appending.await;
            }
            for failures in 1.. {
                match remove(&*ledger, run).await {
                    // Who has taken the ledger over has removed it at its start.
                    Ok(()) | Err(LedgerError::Owned { .. }) => break,
                    Err(_) => tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await,
                }
            }
            drop(reserved);
        });
    }
}

async fn remove(ledger: &dyn SubmissionLedger, run: RunId) -> Result<(), LedgerError> {
    let removed = ledger.abandon(run).await;
    if let Err(error) = &removed {
        tracing::error!(%error, run.id = %run, "cannot remove a refused run, trying again");
    }
    removed
}

/// Asks again when there was no answer.
pub(super) async fn persistently<T, F: Future<Output = Result<T, LedgerError>>>(
    ask: impl Fn() -> F,
) -> Result<T, LedgerError> {
    for failures in 1..TRIES {
        match ask().await {
            Err(error @ LedgerError::Unavailable(_)) => {
                tracing::warn!(%error, "the ledger did not answer a submission, asking again");
            }
            answer => return answer,
        }
        tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await;
    }
    ask().await
}

fn pass_on_panic<T>(error: JoinError) -> T {
    std::panic::resume_unwind(error.into_panic())
}
