//! The dead queue: messages that no worker could read, and what the broker itself gave up on. What belongs
//! to a known attempt becomes a dead batch in the ledger; the rest is put aside for a person.
//!
//! Where messages are signed, a dead one still carries the signature of the work that it was. Without one that holds,
//! its ids say nothing: anybody could have a batch killed by them.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use shared::batch::BatchIds;
use shared::broker::{Ack, BrokerError, Connector, PublishingPool};
use shared::outcome::printable_error;
use shared::signing::{BAD_SIGNATURE, Purpose};
use shared::topology::{DEAD, HEADER_ERROR, HEADER_REASON};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::consuming::{ConsumeError, Consumer, Failures};
use crate::ledger::{Effect, Judged, LedgerError, SettlementLedger, Verdict};
use crate::notice::Notice;
use crate::quarantine;

/// Unacked messages: dead ones are rare, so one at a time would do.
const PREFETCH: u16 = 16;
/// Reason of a message that the broker dead-lettered without a worker's word.
const DEAD_LETTERED: &str = "dead_lettered";

/// The stage.
pub struct DeadStage {
    /// Where dead batches are recorded.
    pub ledger: Arc<dyn SettlementLedger>,
    /// How to reach the broker.
    pub connector: Connector,
    /// Where strangers are put aside.
    pub publishing: PublishingPool,
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
    /// Ends the stage.
    pub draining: CancellationToken,
}

#[async_trait]
impl Consumer for DeadStage {
    async fn consume(&mut self, failures: &mut Failures) -> Result<(), ConsumeError> {
        let Some(connection) = self.connector.reconnect("dead", &self.draining).await else {
            return Ok(());
        };
        let (mut deliveries, settle) = self
            .connector
            .subscribe(&connection, DEAD, PREFETCH)
            .await?;
        loop {
            let delivery = tokio::select! {
                delivery = deliveries.next() => delivery,
                () = self.draining.cancelled() => return Ok(()),
            };
            let ended = || BrokerError::Lost(format!("the consumer of {DEAD} was cancelled"));
            let delivery = delivery.ok_or_else(ended)??;
            self.bury(&delivery).await?;
            settle
                .ack(Ack {
                    tag: delivery.delivery_tag,
                    multiple: false,
                })
                .await?;
            failures.forget();
        }
    }
}

impl DeadStage {
    /// Records the message's batch as dead, or puts the message aside.
    async fn bury(&self, delivery: &Delivery) -> Result<(), ConsumeError> {
        let mut reason = header(delivery, HEADER_REASON).unwrap_or_else(|| DEAD_LETTERED.into());
        let mut error = header(delivery, HEADER_ERROR)
            .unwrap_or_else(|| "the broker gave up on this message".into());
        let checked = self.connector.check(Purpose::Work, delivery);
        let effect = match (&checked, BatchIds::decode(&delivery.properties)) {
            (Ok(()), Ok(ids)) => self.settle(&ids, &reason, &error).await?,
            _ => None,
        };
        if let Err(bad) = checked {
            (reason, error) = (BAD_SIGNATURE.to_owned(), bad.to_string());
        }
        let known = effect.is_some();
        metrics::counter!("tidegate_dead_messages_total", "known" => if known { "yes" } else { "no" }).increment(1);
        match effect {
            Some(Effect::Dead) => tracing::warn!(
                reason,
                error,
                "a message could not be delivered, its batch is dead"
            ),
            Some(Effect::Again) => tracing::error!(
                error,
                "a worker refuses signatures that hold here, the batch goes out again: give both the same keys"
            ),
            Some(_) => tracing::info!(
                reason,
                error,
                "a message could not be delivered, its attempt was settled before"
            ),
            None => {
                tracing::error!(
                    reason,
                    error,
                    "a message that belongs to no batch, put aside in tidegate.quarantine"
                );
                quarantine::put_aside(&self.publishing, delivery, &reason, &error).await?;
            }
        }
        Ok(())
    }

    /// What it did to the batch. `None`: the ledger knows no such attempt, or what it knows makes no sense.
    async fn settle(
        &self,
        ids: &BatchIds,
        reason: &str,
        error: &str,
    ) -> Result<Option<Effect>, LedgerError> {
        let judged = Judged {
            batch: ids.id,
            attempt: ids.attempt,
            worker: None,
            took: None,
            verdict: verdict(reason, error),
        };
        let settled = match self.ledger.settle(&[judged], Timestamp::now()).await {
            Err(error @ LedgerError::Damaged { .. }) => {
                tracing::error!(%error, batch.id = %ids.id, "cannot record a dead batch");
                return Ok(None);
            }
            settled => settled?,
        };
        let effect = settled.first().map(|settled| settled.effect);
        let _ = self.notices.send(Notice::Settled(settled)).await;
        Ok(effect.filter(|effect| *effect != Effect::Unknown))
    }
}

/// A worker whose keys are not the coordinator's must not kill every batch that it gets: what it could not check,
/// and the coordinator can, goes out again, a bounded number of times.
fn verdict(reason: &str, error: &str) -> Verdict {
    let reason = reason.to_owned();
    if reason == BAD_SIGNATURE {
        return Verdict::Release { reason };
    }
    Verdict::Kill {
        reason,
        error: error.to_owned(),
    }
}

fn header(delivery: &Delivery, name: &str) -> Option<String> {
    match delivery.properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => {
            Some(printable_error(&String::from_utf8_lossy(text.as_bytes())))
        }
        _ => None,
    }
}
