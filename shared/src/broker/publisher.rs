//! Publishing: mandatory and confirmed, always. Only answers to questions go out otherwise (`asking`).

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::time::timeout;

use super::{BrokerError, PublishingPool};
use crate::signing::{Purpose, Signing};
use crate::topology::{ASK, CONTROL, OUTCOMES, PRESENCE, WORK};

/// One message to publish.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it goes.
    pub exchange: &'static str,
    /// Which queue behind the exchange.
    pub routing_key: String,
    /// Everything but the body. A `message_id` is needed to recognise the message when it is returned.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// In a queue, on the disks of a majority.
    Confirmed,
    /// Refused: the queue is full or not available.
    Nacked,
    /// No queue is bound: the topology is missing.
    Unroutable,
}

/// The way to publish: a confirming channel that is opened when it is first needed, and again after it failed.
/// It is no handle to be shared: concurrent publishes on one channel get each other's confirms.
#[derive(Debug)]
pub struct Publisher {
    pool: PublishingPool,
    channel: Option<ConfirmingChannel>,
}

impl Publisher {
    pub(super) fn new(pool: PublishingPool) -> Self {
        Self {
            pool,
            channel: None,
        }
    }

    /// Publishes a group and gives a verdict for each message, in their order.
    ///
    /// # Errors
    /// [`BrokerError`] when there is no connection, when it broke, or when an answer took too long. Then
    /// nothing is known about any of the messages: publish the same ones again, with the same ids.
    pub async fn publish(&mut self, messages: &[Message]) -> Result<Vec<Verdict>, BrokerError> {
        // Taken out, and put back only after it worked: the state of a channel that failed is not known.
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.pool.channel().await?,
        };
        let verdicts = channel.publish(messages).await?;
        self.channel = Some(channel);
        Ok(verdicts)
    }
}

/// One channel with confirms switched on.
#[derive(Debug)]
pub(super) struct ConfirmingChannel {
    channel: Channel,
    answer_timeout: Duration,
    signing: Signing,
}

impl ConfirmingChannel {
    pub(super) async fn open(
        connection: &Connection,
        answer_timeout: Duration,
        signing: Signing,
    ) -> Result<Self, BrokerError> {
        let opening = async {
            let channel = connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            Ok::<_, lapin::Error>(channel)
        };
        let channel = timeout(answer_timeout, opening)
            .await
            .map_err(|_| BrokerError::Timeout("opening a publishing channel"))?
            .map_err(|error| BrokerError::about("a publishing channel", &error))?;
        Ok(Self {
            channel,
            answer_timeout,
            signing,
        })
    }

    /// The channel, to consume from as well.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Publishes a group without waiting in between, then waits for every confirm.
    pub(super) async fn publish(&self, messages: &[Message]) -> Result<Vec<Verdict>, BrokerError> {
        let confirmations = timeout(self.answer_timeout, self.publish_and_confirm(messages))
            .await
            .map_err(|_| BrokerError::Timeout("confirming a publish"))?
            .map_err(|error| BrokerError::about("publishing", &error))?;
        judge(messages, confirmations)
    }

    async fn publish_and_confirm(&self, messages: &[Message]) -> lapin::Result<Vec<Confirmation>> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        // The futures are polled first in this order, by this task alone, so frames and confirm tags agree.
        let publishing = messages.iter().map(|message| {
            self.channel.basic_publish(
                message.exchange.into(),
                message.routing_key.as_str().into(),
                options,
                &message.body,
                self.signed(message),
            )
        });
        let mut confirming = Vec::with_capacity(messages.len());
        for published in join_all(publishing).await {
            confirming.push(published?);
        }
        crate::failpoint::reach(sent(messages));
        join_all(confirming).await.into_iter().collect()
    }

    fn signed(&self, message: &Message) -> BasicProperties {
        let properties = message.properties.clone();
        match purpose(message) {
            Some(purpose) => self.signing.sign(purpose, properties, &message.body),
            None => properties,
        }
    }
}

/// What a message is for. What is put aside keeps the signature that it came with.
fn purpose(message: &Message) -> Option<Purpose> {
    match message.exchange {
        WORK => Some(Purpose::Work),
        OUTCOMES => Some(Purpose::Outcomes),
        PRESENCE => Some(Purpose::Presence),
        CONTROL => Some(Purpose::Control),
        ASK => Some(Purpose::Questions),
        _ => None,
    }
}

/// The fail point at which these messages are under way.
fn sent(messages: &[Message]) -> &'static str {
    match messages.first().map(|message| message.exchange) {
        Some(WORK) => "c.publish.sent",
        Some(OUTCOMES) => "w.outcome.sent",
        _ => "other.sent",
    }
}

/// Pairs confirmations with messages. lapin attaches a return to whichever confirm completes next, so
/// returns are matched by message id, over the whole group.
fn judge(
    messages: &[Message],
    confirmations: Vec<Confirmation>,
) -> Result<Vec<Verdict>, BrokerError> {
    let mut verdicts = Vec::with_capacity(messages.len());
    let mut returned: HashSet<String> = HashSet::new();
    for confirmation in confirmations {
        let (verdict, message) = match confirmation {
            Confirmation::Ack(message) => (Verdict::Confirmed, message),
            Confirmation::Nack(message) => (Verdict::Nacked, message),
            Confirmation::NotRequested => return Err(BrokerError::NotConfirming),
        };
        returned.extend(message.as_ref().and_then(returned_id));
        verdicts.push(verdict);
    }
    if !returned.is_empty() {
        for (message, verdict) in messages.iter().zip(&mut verdicts) {
            let id = message.properties.message_id().as_ref();
            if id.is_some_and(|id| returned.contains(id.as_str())) {
                *verdict = Verdict::Unroutable;
            }
        }
    }
    Ok(verdicts)
}

fn returned_id(message: &BasicReturnMessage) -> Option<String> {
    message
        .delivery
        .properties
        .message_id()
        .as_ref()
        .map(ToString::to_string)
}
