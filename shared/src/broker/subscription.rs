//! Consuming from one queue. A stream that ends is a fault, never idleness.

use std::time::Duration;

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;

use super::{Ack, BrokerError};

/// A consumer on a channel of its own.
#[derive(Debug)]
pub struct Subscription {
    channel: Channel,
    consumer: Consumer,
    queue: String,
    answer_timeout: Duration,
}

impl Subscription {
    pub(super) async fn open(
        connection: &Connection,
        queue: &str,
        tag: &str,
        prefetch: u16,
        answer_timeout: Duration,
    ) -> Result<Self, BrokerError> {
        let opening = async {
            let channel = connection.create_channel().await?;
            // Before consuming, per consumer: quorum queues know no global limit.
            channel
                .basic_qos(prefetch, BasicQosOptions::default())
                .await?;
            let options = BasicConsumeOptions::default();
            let consumer = channel
                .basic_consume(queue.into(), tag.into(), options, FieldTable::default())
                .await?;
            Ok::<_, lapin::Error>((channel, consumer))
        };
        let (channel, consumer) = timeout(answer_timeout, opening)
            .await
            .map_err(|_| BrokerError::Timeout("subscribing"))?
            .map_err(|error| {
                BrokerError::about(&format!("consuming from queue {queue}"), &error)
            })?;
        Ok(Self {
            channel,
            consumer,
            queue: queue.to_owned(),
            answer_timeout,
        })
    }

    /// The queue that this consumes from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The next delivery; an error when the broker cancelled the consumer or channel or connection are gone.
    /// Safe to cancel: a delivery is either returned or still waiting.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(delivery),
            Some(Err(error)) => Err(BrokerError::about(&format!("queue {}", self.queue), &error)),
            None => Err(BrokerError::Lost(format!(
                "the broker cancelled the consumer of {}",
                self.queue
            ))),
        }
    }

    /// Stops new deliveries; what was delivered can still be acked.
    pub async fn cancel(&self) -> Result<(), BrokerError> {
        let cancelling = self
            .channel
            .basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        self.answered("cancelling a consumer", cancelling).await
    }

    /// Acks deliveries by tag. The broker does not confirm acks: when one is lost, it redelivers.
    pub async fn ack(&self, ack: Ack) -> Result<(), BrokerError> {
        let acking = self.channel.basic_ack(
            ack.tag,
            BasicAckOptions {
                multiple: ack.multiple,
            },
        );
        self.answered("acking", acking).await
    }

    /// Gives a delivery back: another worker takes it at once.
    pub async fn nack(&self, tag: u64) -> Result<(), BrokerError> {
        let nacking = self.channel.basic_nack(
            tag,
            BasicNackOptions {
                multiple: false,
                requeue: true,
            },
        );
        self.answered("nacking", nacking).await
    }

    /// Refuses a delivery for good: the broker dead-letters it.
    pub async fn reject(&self, tag: u64) -> Result<(), BrokerError> {
        let rejecting = self.channel.basic_nack(
            tag,
            BasicNackOptions {
                multiple: false,
                requeue: false,
            },
        );
        self.answered("rejecting", rejecting).await
    }

    async fn answered(
        &self,
        what: &'static str,
        call: impl Future<Output = lapin::Result<()>>,
    ) -> Result<(), BrokerError> {
        timeout(self.answer_timeout, call)
            .await
            .map_err(|_| BrokerError::Timeout(what))?
            .map_err(|error| BrokerError::about(&format!("queue {}", self.queue), &error))
    }
}
