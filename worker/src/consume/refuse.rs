//! Messages that are no batch for this worker: reported or sent on, never dropped.

use lapin::message::Delivery;
use lapin::types::AMQPValue;
use shared::batch::{Batch, BatchIds, DecodeError};
use shared::broker::{BrokerError, Message, PERSISTENT, Verdict};
use shared::id::BatchId;
use shared::name::{Key, PipelineName};
use shared::outcome::Outcome;
use shared::topology::{DEAD, HEADER_ERROR, HEADER_REASON};

use super::ConsumeStage;
use crate::commit::Work;
use crate::held::Held;

impl ConsumeStage {
    /// A message that is no batch for this worker.
    pub(super) async fn refuse(
        &self,
        held: Held,
        delivery: Delivery,
        pipeline: &PipelineName,
        error: DecodeError,
    ) {
        tracing::error!(%error, reason = error.reason(), %pipeline, "a message on a work queue cannot be run");
        metrics::counter!("tidegate_undecodable_total", "reason" => error.reason()).increment(1);
        if let DecodeError::OtherVersion {
            ids: BatchIds { id, run, attempt },
            ..
        } = error
        {
            let payload = serde_json::value::RawValue::NULL.to_owned();
            let batch = Batch {
                id,
                run,
                pipeline: pipeline.clone(),
                key: Key::default(),
                attempt,
                payload,
            };
            let reason = "unsupported_version".to_owned();
            let work = Work {
                held,
                batch: batch.into(),
                redelivered: delivery.redelivered,
                took: None,
            };
            return self.commit.report(work, Outcome::Released { reason }).await;
        }
        match self.send_to_dead(delivery, &error).await {
            Ok(()) => held.ack(),
            Err(problem) => {
                tracing::warn!(error = %problem, "could not send a message to tidegate.dead, rejecting it");
                held.reject().await;
            }
        }
    }

    async fn send_to_dead(
        &self,
        delivery: Delivery,
        error: &DecodeError,
    ) -> Result<(), BrokerError> {
        let mut headers = delivery.properties.headers().clone().unwrap_or_default();
        headers.insert(
            HEADER_REASON.into(),
            AMQPValue::LongString(error.reason().into()),
        );
        headers.insert(
            HEADER_ERROR.into(),
            AMQPValue::LongString(error.to_string().into()),
        );
        let mut properties = delivery
            .properties
            .with_headers(headers)
            .with_delivery_mode(PERSISTENT);
        if properties.message_id().is_none() {
            // A return is recognised by its message id.
            properties = properties.with_message_id(BatchId::generate().to_string().into());
        }
        let message = Message {
            exchange: DEAD,
            routing_key: String::new(),
            properties,
            body: delivery.data,
        };
        let verdicts = self.publishing.publisher().publish(&[message]).await?;
        match verdicts.as_slice() {
            [Verdict::Confirmed] => Ok(()),
            other => Err(BrokerError::Lost(format!(
                "tidegate.dead did not take a message: {other:?}"
            ))),
        }
    }
}
