//! Completion webhooks: tells whoever a run's submitter named that the run has finished.
//!
//! At least once: what was told is noted in the ledger after the receiver has answered, so a crash in between
//! tells it again, under the same idempotency key. A call that fails is repeated with growing delays and given
//! up in the end, visibly. Nothing waits for a slow receiver but its own webhooks.

mod call;
mod queue;
mod receivers;
mod verdict;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use shared::config::WebhooksConfig;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::ledger::{LedgerError, MemoryLedger, Webhook};
use call::Caller;
pub use call::ClientError;
use queue::Queue;
use receivers::Receiver;
pub use receivers::{Receivers, WebhookRefused};
use verdict::{Answer, Patience, Verdict, judge};

/// How often the ledger is asked what is due: the most that a webhook is late.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most webhooks that wait in memory.
const PAGE: usize = 256;
/// How far webhooks step back, at most, whose receiver does not answer while others may be hidden behind them.
const STEP_BACK: Duration = Duration::from_secs(30);
/// How long a stopping coordinator waits for calls under way, so that few are repeated later.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The stage.
pub struct WebhookStage {
    ledger: Arc<dyn MemoryLedger>,
    /// `None` when no host is allowed: what is due waits until one is.
    caller: Option<Arc<Caller>>,
    patience: Patience,
    queue: Queue,
    draining: CancellationToken,
}

impl WebhookStage {
    /// Nothing is called yet.
    pub fn new(
        config: &WebhooksConfig,
        ledger: Arc<dyn MemoryLedger>,
        draining: CancellationToken,
    ) -> Result<Self, ClientError> {
        let size = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let caller = if config.allow.is_empty() {
            None
        } else {
            Some(Arc::new(Caller::new(config)?))
        };
        Ok(Self {
            ledger,
            caller,
            patience: Patience {
                max_attempts: config.max_attempts,
                backoff: config.backoff(),
                longest: config.retry_cap.get(),
            },
            queue: Queue::new(size(config.concurrency), size(config.concurrency_per_host)),
            draining,
        })
    }

    /// Runs until draining.
    pub async fn run(mut self) -> Result<(), Infallible> {
        let Some(caller) = self.caller.take() else {
            self.draining.cancelled().await;
            return Ok(());
        };
        let mut calls = JoinSet::new();
        let mut looked = Looked::All;
        let mut next_look = Instant::now();
        while !self.draining.is_cancelled() {
            let has_room = looked == Looked::Part && self.queue.is_empty();
            if has_room || next_look <= Instant::now() {
                looked = self.look(Timestamp::now()).await.unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot read which webhooks are due, trying again");
                    Looked::All
                });
                let at_once = looked == Looked::Stuck;
                next_look = Instant::now() + if at_once { Duration::ZERO } else { LOOK_EVERY };
            }
            while let Some(webhook) = self.queue.next() {
                let (caller, ledger) = (caller.clone(), self.ledger.clone());
                calls.spawn(deliver(caller, ledger, self.patience, webhook));
            }
            tokio::select! {
                Some(ended) = calls.join_next() => self.queue.ended(&unwrapped(ended)),
                () = sleep(next_look.saturating_duration_since(Instant::now())) => {}
                () = self.draining.cancelled() => {}
            }
        }
        let _ = timeout(LAST_CALLS, async {
            while calls.join_next().await.is_some() {}
        })
        .await;
        Ok(())
    }

    /// Reads what is due into the queue.
    async fn look(&mut self, now: Timestamp) -> Result<Looked, LedgerError> {
        let next = self.ledger.next_webhook().await?;
        let limit = PAGE + self.queue.calling();
        let due = if next.is_some_and(|due| due <= now) {
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            self.ledger.webhooks_due(now, limit).await?
        } else {
            Vec::new()
        };
        let is_partial = due.len() >= limit;
        let stuck = self.queue.refill(due, is_partial);
        for webhook in &stuck {
            let again = now + STEP_BACK.mul_f64(rand::random());
            let stepping_back =
                (self.ledger).webhook_called(webhook, webhook.failures, Some(again));
            stepping_back.await?;
        }
        Ok(match (is_partial, stuck.is_empty()) {
            (false, _) => Looked::All,
            (true, true) => Looked::Part,
            (true, false) => Looked::Stuck,
        })
    }
}

/// How much of what is due was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looked {
    /// Everything.
    All,
    /// As much as is read at a time.
    Part,
    /// The same, and some of it stepped back, so that others come to light.
    Stuck,
}

/// Makes one call and notes what it came to.
async fn deliver(
    caller: Arc<Caller>,
    ledger: Arc<dyn MemoryLedger>,
    patience: Patience,
    webhook: Webhook,
) -> Webhook {
    let started = Instant::now();
    let answer = caller.call(&webhook, Timestamp::now()).await;
    metrics::histogram!("tidegate_webhook_seconds").record(started.elapsed());
    let now = Timestamp::now();
    let verdict = judge(&answer, webhook.failures, patience, rand::random(), now);
    say(&webhook, &answer, &verdict);
    let (failures, again) = match verdict {
        Verdict::Delivered => (webhook.failures, None),
        Verdict::Again(delay) => {
            let again = now.checked_add(delay).unwrap_or(Timestamp::MAX);
            (webhook.failures + 1, Some(again))
        }
        Verdict::GiveUp => (webhook.failures + 1, None),
    };
    if let Err(error) = ledger.webhook_called(&webhook, failures, again).await {
        tracing::warn!(run.id = %webhook.run.run, %error, "cannot note what became of a webhook, it will be called again");
    }
    webhook
}

/// The URL may hold a secret, so only its host is logged.
fn say(webhook: &Webhook, answer: &Answer, verdict: &Verdict) {
    let (run, receiver) = (webhook.run.run, Receiver::of(&webhook.url));
    let calls = webhook.failures + 1;
    let result = match verdict {
        Verdict::Delivered => {
            tracing::info!(run.id = %run, %receiver, calls, "webhook delivered");
            "delivered"
        }
        Verdict::Again(delay) => {
            tracing::warn!(run.id = %run, %receiver, calls, %answer, ?delay, "webhook failed, trying again");
            "again"
        }
        Verdict::GiveUp => {
            tracing::error!(run.id = %run, %receiver, calls, %answer, "webhook given up: nobody was told that the run has finished");
            "given_up"
        }
    };
    metrics::counter!("tidegate_webhook_calls_total", "result" => result).increment(1);
}

fn unwrapped(ended: Result<Webhook, JoinError>) -> Webhook {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests;
