//! Whether there is room for more: the backlog limit, counted over everything that is being submitted at
//! the same time, and what other parts of the system have to say about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::SubmissionError;
use crate::ledger::SubmissionLedger;

/// Why nothing is taken now, and when to ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// What is under pressure, for a person.
    pub reason: String,
    /// When it may have passed.
    pub after: Duration,
}

/// Whoever knows that the system cannot take more now: a critical level, a broker that blocks.
pub trait Pressure: Send + Sync + 'static {
    /// A reason to refuse all submissions, if there is one.
    fn refuse(&self) -> Option<Retry>;
}

/// Nothing is ever too much.
#[cfg(test)]
pub(crate) struct NoPressure;

#[cfg(test)]
impl Pressure for NoPressure {
    fn refuse(&self) -> Option<Retry> {
        None
    }
}

/// Whoever knows which addresses may be told that a run has finished.
pub trait WebhookCheck: Send + Sync + 'static {
    /// Why this address may not be called.
    fn check(&self, url: &str) -> Result<(), String>;
}

/// No address may be called.
#[cfg(test)]
pub(crate) struct NoWebhooks;

#[cfg(test)]
impl WebhookCheck for NoWebhooks {
    fn check(&self, _: &str) -> Result<(), String> {
        Err("no host may be called: name some in webhooks.allow".to_owned())
    }
}

/// How many batches may be pending. What is being submitted counts too, so that submissions together do
/// not pass the limit either; two that only fit one after the other may both be refused.
#[derive(Debug, Clone)]
pub struct Room {
    limit: u64,
    under_way: Arc<AtomicU64>,
}

impl Room {
    /// So many over all runs.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            under_way: Arc::default(),
        }
    }

    pub(super) fn nothing(&self) -> Reserved {
        Reserved {
            under_way: self.under_way.clone(),
            batches: 0,
        }
    }

    /// Counts more batches of a submission, if there is room for them.
    pub(super) async fn reserve(
        &self,
        ledger: &dyn SubmissionLedger,
        reserved: &mut Reserved,
        batches: u64,
    ) -> Result<(), SubmissionError> {
        reserved.add(batches);
        // In this order: a submission that is accepted in between is counted twice, never not at all.
        let under_way = self.under_way.load(Ordering::SeqCst);
        let pending = ledger.backlog().await?;
        if pending.saturating_add(under_way) > self.limit {
            return Err(SubmissionError::QueueFull {
                pending,
                under_way,
                limit: self.limit,
            });
        }
        Ok(())
    }
}

/// Batches of one submission that the ledger does not count as pending yet.
#[derive(Debug)]
pub(super) struct Reserved {
    under_way: Arc<AtomicU64>,
    batches: u64,
}

impl Reserved {
    fn add(&mut self, batches: u64) {
        self.batches += batches;
        self.under_way.fetch_add(batches, Ordering::SeqCst);
    }

    /// The same batches in other hands.
    pub(super) fn hand_over(&mut self) -> Self {
        Self {
            under_way: self.under_way.clone(),
            batches: std::mem::take(&mut self.batches),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.under_way.fetch_sub(self.batches, Ordering::SeqCst);
    }
}
