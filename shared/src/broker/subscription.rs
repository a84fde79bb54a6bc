//! Consuming from one queue. Deliveries and acks are two handles, because they are used by different
//! tasks: one waits for what comes, another settles what was done.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;

use super::{Ack, BrokerError};

/// What comes from a queue: a stream that never ends well. An error or its end says that the broker
/// cancelled the consumer, or that channel or connection are gone, and everything must be built again.
#[derive(Debug)]
pub struct Deliveries {
    consumer: Consumer,
    queue: String,
}

/// The other side of the same channel.
#[derive(Debug, Clone)]
pub struct Settle {
    channel: Channel,
    tag: ShortString,
    queue: String,
    answer_timeout: Duration,
}

pub(super) async fn subscribe(
    connection: &Connection,
    queue: &str,
    tag: &str,
    prefetch: u16,
    answer_timeout: Duration,
) -> Result<(Deliveries, Settle), BrokerError> {
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
        .map_err(|error| BrokerError::about(&format!("consuming from queue {queue}"), &error))?;
    let settle = Settle {
        channel,
        tag: consumer.tag(),
        queue: queue.to_owned(),
        answer_timeout,
    };
    Ok((
        Deliveries {
            consumer,
            queue: queue.to_owned(),
        },
        settle,
    ))
}

impl Stream for Deliveries {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let about = |queue: &str, error: &_| BrokerError::about(&format!("queue {queue}"), error);
        match self.consumer.poll_next_unpin(cx) {
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(about(&self.queue, &error)))),
            Poll::Ready(Some(Ok(delivery))) => Poll::Ready(Some(Ok(delivery))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Settle {
    /// The queue that this consumes from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Whether anything that is settled here still reaches the broker.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Stops new deliveries; what was delivered can still be acked.
    pub async fn cancel(&self) -> Result<(), BrokerError> {
        let cancelling = self
            .channel
            .basic_cancel(self.tag.clone(), BasicCancelOptions::default());
        self.answered("cancelling a consumer", cancelling).await
    }

    /// Acks deliveries by tag. The broker does not confirm acks: when one is lost, it redelivers.
    pub async fn ack(&self, ack: Ack) -> Result<(), BrokerError> {
        let options = BasicAckOptions {
            multiple: ack.multiple,
        };
        self.answered("acking", self.channel.basic_ack(ack.tag, options))
            .await
    }

    /// Gives a delivery back: another worker takes it at once.
    pub async fn nack(&self, tag: u64) -> Result<(), BrokerError> {
        let options = BasicNackOptions {
            multiple: false,
            requeue: true,
        };
        self.answered("nacking", self.channel.basic_nack(tag, options))
            .await
    }

    /// Refuses a delivery for good: the broker dead-letters it.
    pub async fn reject(&self, tag: u64) -> Result<(), BrokerError> {
        let options = BasicNackOptions {
            multiple: false,
            requeue: false,
        };
        self.answered("rejecting", self.channel.basic_nack(tag, options))
            .await
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
