//! The reference: the same messages through the same broker by lapin alone, with nothing recorded.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesOrdered, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};

use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use crate::{payload, per_second};

const QUEUE: &str = "bare";
/// Publishes whose confirms are awaited at a time.
const WINDOW: usize = 1_000;
/// Deliveries that one ack answers.
const ACK_EVERY: u64 = 100;
const PREFETCH: u16 = 1_000;

/// Messages per second from the first publish to the last ack, publisher and consumer running at once.
pub async fn rate(url: &str, messages: usize) -> Result<f64> {
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
    // Made beforehand, as the submission to Tidegate is.
    let bodies: Vec<Vec<u8>> = (0..messages)
        .map(|number| payload(number).to_string().into_bytes())
        .collect();

    let start = Instant::now();
    let consuming_task = tokio::spawn(consume(consuming, messages));
    publish(&publishing, &bodies).await?;
    consuming_task.await??;
    let rate = per_second(messages, start.elapsed());

    // The consumer first: it would take the queue's end for a fault.
    consumer.close(200, "done".into()).await?;
    publishing
        .queue_delete(QUEUE.into(), lapin::options::QueueDeleteOptions::default())
        .await?;
    publisher.close(200, "done".into()).await?;
    Ok(rate)
}

/// Pipelined, one task, each confirm looked at.
async fn publish(channel: &Channel, bodies: &[Vec<u8>]) -> Result<()> {
    let mut unconfirmed = FuturesOrdered::new();
    for body in bodies {
        if unconfirmed.len() == WINDOW {
            confirmed(&unconfirmed.next().await.context("the window is full")??)?;
        }
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let confirm = channel
            .basic_publish("".into(), QUEUE.into(), options, body, properties)
            .await?;
        unconfirmed.push_back(confirm);
    }
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
    let mut deliveries = channel
        .basic_consume(
            QUEUE.into(),
            "bare".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
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

/// Fills the queue with so many messages, which [`consume_all`] takes.
pub async fn fill(url: &str, messages: usize) -> Result<()> {
    let publisher = Connection::connect(url, ConnectionProperties::default()).await?;
    let publishing = publisher.create_channel().await?;
    publishing
        .queue_declare(QUEUE.into(), durable(), quorum())
        .await?;
    publishing
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let bodies: Vec<Vec<u8>> = (0..messages)
        .map(|number| payload(number).to_string().into_bytes())
        .collect();
    publish(&publishing, &bodies).await?;
    Ok(publisher.close(200, "done".into()).await?)
}

/// Consumes so many messages, and keeps its connection, which costs next to nothing.
pub async fn consume_all(url: &str, messages: usize) -> Result<Connection> {
    let consumer = Connection::connect(url, ConnectionProperties::default()).await?;
    let consuming = consumer.create_channel().await?;
    consuming
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    consume(consuming, messages).await?;
    Ok(consumer)
}
