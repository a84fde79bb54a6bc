//! The reference: the same messages through the same broker by lapin alone, with nothing recorded.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesOrdered, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm,
};

use crate::stamp::{self, Stamped};
use crate::{payload, per_second};

const QUEUE: &str = "bare";
/// Publishes whose confirms are awaited at a time.
const WINDOW: usize = 1_000;
/// Deliveries that one ack answers.
const ACK_EVERY: u64 = 100;
const PREFETCH: u16 = 1_000;

/// Messages per second from the first publish to the last ack, publisher and consumer running at once.
pub async fn rate(url: &str, messages: usize) -> Result<f64> {
    let bare = Bare::connect(url).await?;
    // Made beforehand, as the submission to Tidegate is.
    let bodies: Vec<Vec<u8>> = (0..messages)
        .map(|number| payload(number).to_string().into_bytes())
        .collect();

    let start = Instant::now();
    let consuming = tokio::spawn(consume(bare.consuming.clone(), messages));
    publish(&bare.publishing, &bodies).await?;
    consuming.await??;
    let rate = per_second(messages, start.elapsed());
    bare.close().await?;
    Ok(rate)
}

/// How long each of so many messages takes from publish to delivery, one published every `pause`.
pub async fn waits(url: &str, messages: usize, pause: Duration) -> Result<Vec<Duration>> {
    let bare = Bare::connect(url).await?;
    let consuming = tokio::spawn(receive_stamps(bare.consuming.clone(), messages));
    let mut unconfirmed = FuturesOrdered::new();
    let mut ticks = tokio::time::interval(pause);
    for number in 0..messages {
        ticks.tick().await;
        let body = serde_json::to_vec(&Stamped::now(number))?;
        unconfirmed.push_back(send(&bare.publishing, &body).await?);
    }
    all_confirmed(unconfirmed).await?;
    let waits = consuming.await??;
    bare.close().await?;
    Ok(waits)
}

/// A queue, and a connection at each end of it.
struct Bare {
    publisher: Connection,
    publishing: Channel,
    consumer: Connection,
    consuming: Channel,
}

impl Bare {
    async fn connect(url: &str) -> Result<Self> {
        let publisher = Connection::connect(url, ConnectionProperties::default()).await?;
        let consumer = Connection::connect(url, ConnectionProperties::default()).await?;
        let publishing = publisher.create_channel().await?;
        publishing
            .queue_declare(QUEUE.into(), durable(), quorum())
            .await?;
        publishing
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let consuming = consumer.create_channel().await?;
        consuming
            .basic_qos(PREFETCH, BasicQosOptions::default())
            .await?;
        Ok(Self {
            publisher,
            publishing,
            consumer,
            consuming,
        })
    }

    async fn close(self) -> Result<()> {
        // The consumer first: it would take the queue's end for a fault.
        self.consumer.close(200, "done".into()).await?;
        self.publishing
            .queue_delete(QUEUE.into(), QueueDeleteOptions::default())
            .await?;
        Ok(self.publisher.close(200, "done".into()).await?)
    }
}

/// Pipelined, one task, each confirm looked at.
async fn publish(channel: &Channel, bodies: &[Vec<u8>]) -> Result<()> {
    let mut unconfirmed = FuturesOrdered::new();
    for body in bodies {
        if unconfirmed.len() == WINDOW {
            confirmed(&unconfirmed.next().await.context("the window is full")??)?;
        }
        unconfirmed.push_back(send(channel, body).await?);
    }
    all_confirmed(unconfirmed).await
}

async fn send(channel: &Channel, body: &[u8]) -> lapin::Result<PublisherConfirm> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let options = BasicPublishOptions::default();
    channel
        .basic_publish("".into(), QUEUE.into(), options, body, properties)
        .await
}

async fn all_confirmed(mut unconfirmed: FuturesOrdered<PublisherConfirm>) -> Result<()> {
    while let Some(confirm) = unconfirmed.next().await {
        confirmed(&confirm?)?;
    }
    Ok(())
}

fn confirmed(confirmation: &Confirmation) -> Result<()> {
    ensure!(
        matches!(confirmation, Confirmation::Ack(None)),
        "not confirmed: {confirmation:?}"
    );
    Ok(())
}

async fn consume(channel: Channel, messages: usize) -> Result<()> {
    take(start_consuming(&channel).await?, messages).await
}

async fn take(mut deliveries: lapin::Consumer, messages: usize) -> Result<()> {
    let mut left = messages;
    while left > 0 {
        let delivery = deliveries.next().await.context("the consumer ended")??;
        left -= 1;
        if delivery.delivery_tag % ACK_EVERY == 0 || left == 0 {
            delivery.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    Ok(())
}

async fn receive_stamps(channel: Channel, messages: usize) -> Result<Vec<Duration>> {
    let mut deliveries = start_consuming(&channel).await?;
    let mut waits = Vec::with_capacity(messages);
    while waits.len() < messages {
        let delivery = deliveries.next().await.context("the consumer ended")??;
        let received = stamp::now();
        let stamped: Stamped = serde_json::from_slice(&delivery.data)?;
        waits.push(stamped.wait_until(received));
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(waits)
}

async fn start_consuming(channel: &Channel) -> lapin::Result<lapin::Consumer> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    channel
        .basic_consume(QUEUE.into(), "bare".into(), options, arguments)
        .await
}

fn durable() -> QueueDeclareOptions {
    QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    }
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    arguments
}

/// Fills the queue with so many messages, which a [`Consuming`] takes.
pub async fn fill(url: &str, messages: usize) -> Result<()> {
    let publisher = Connection::connect(url, ConnectionProperties::default()).await?;
    let publishing = publisher.create_channel().await?;
    publishing
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let bodies: Vec<Vec<u8>> = (0..messages)
        .map(|number| payload(number).to_string().into_bytes())
        .collect();
    publish(&publishing, &bodies).await?;
    Ok(publisher.close(200, "done".into()).await?)
}

/// A consumer of a queue of its own making.
pub struct Consuming {
    connection: Connection,
    deliveries: lapin::Consumer,
}

impl Consuming {
    /// Messages may come.
    pub async fn start(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel
            .queue_declare(QUEUE.into(), durable(), quorum())
            .await?;
        channel
            .basic_qos(PREFETCH, BasicQosOptions::default())
            .await?;
        Ok(Self {
            deliveries: start_consuming(&channel).await?,
            connection,
        })
    }

    /// Takes so many, and gives the connection back: kept, it costs next to nothing.
    pub async fn all(self, messages: usize) -> Result<Connection> {
        take(self.deliveries, messages).await?;
        Ok(self.connection)
    }
}
