//! Asking and answering: questions go out over an exchange, answers come back through RabbitMQ's direct
//! reply-to. Both are transient, and whatever is lost is asked for again.

use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, Consumer};
use tokio::time::timeout;

use super::publisher::ConfirmingChannel;
use super::{BrokerError, Connector, Message, PublishingPool, Verdict};
use crate::signing::Purpose;

/// The pseudo-queue that stands for the channel that consumes it.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Sends questions: a connection of its own, because AMQP wants question and answer on the same channel, and
/// a blocked connection would hold back everything else on it.
#[derive(Debug)]
pub struct AskingChannel {
    connection: Connection,
    channel: ConfirmingChannel,
}

/// What comes back to an [`AskingChannel`]. An error or its end says that the channel is gone.
#[derive(Debug)]
pub struct Replies(Consumer);

impl Connector {
    /// Opens a connection for asking.
    pub async fn asking(&self) -> Result<(AskingChannel, Replies), BrokerError> {
        let connection = self.connect("ask").await?;
        let signing = self.signing().clone();
        let channel = ConfirmingChannel::open(&connection, self.answer_timeout(), signing).await?;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..Default::default()
        };
        let consuming = channel.channel().basic_consume(
            REPLY_TO.into(),
            "answers".into(),
            options,
            FieldTable::default(),
        );
        let replies = timeout(self.answer_timeout(), consuming)
            .await
            .map_err(|_| BrokerError::Timeout("waiting for answers"))?
            .map_err(|error| BrokerError::about("direct reply-to", &error))?;
        Ok((
            AskingChannel {
                connection,
                channel,
            },
            Replies(replies),
        ))
    }
}

impl AskingChannel {
    /// Sends a group of questions and says of each whether somebody is there to hear it.
    pub async fn ask(&self, mut questions: Vec<Message>) -> Result<Vec<Verdict>, BrokerError> {
        for question in &mut questions {
            let properties = std::mem::take(&mut question.properties);
            question.properties = properties.with_reply_to(REPLY_TO.into());
        }
        self.channel.publish(&questions).await
    }

    /// The connection, to say goodbye to.
    #[must_use]
    pub fn into_connection(self) -> Connection {
        self.connection
    }
}

impl Replies {
    /// The next one.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        match self.0.next().await {
            Some(Ok(delivery)) => Ok(delivery),
            Some(Err(error)) => Err(BrokerError::about("direct reply-to", &error)),
            None => Err(BrokerError::Lost(
                "the channel that waits for answers was closed".into(),
            )),
        }
    }
}

/// An answer on its way.
#[derive(Debug)]
pub struct Reply {
    /// The question's `reply_to`.
    pub address: String,
    /// Everything but the body.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

/// Sends answers, through the default exchange, which delivers them to the asking channel without a queue.
/// They are not confirmed: nobody could do anything about one that did not arrive, because whoever asked may
/// be gone.
#[derive(Debug)]
pub struct Answering {
    pool: PublishingPool,
    channel: Option<Channel>,
    answer_timeout: Duration,
}

impl Answering {
    pub(super) fn new(pool: PublishingPool, answer_timeout: Duration) -> Self {
        Self {
            pool,
            channel: None,
            answer_timeout,
        }
    }

    /// Sends a group of answers.
    pub async fn send(&mut self, replies: &[Reply]) -> Result<(), BrokerError> {
        // Put back only after it worked: the state of a channel that failed is not known.
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.pool.plain_channel().await?,
        };
        let signing = self.pool.signing().clone();
        let publishing = replies.iter().map(|reply| {
            let properties = reply.properties.clone();
            let properties = signing.sign(Purpose::Answers, properties, &reply.body);
            channel.basic_publish(
                "".into(),
                reply.address.as_str().into(),
                BasicPublishOptions::default(),
                &reply.body,
                properties,
            )
        });
        let published = timeout(self.answer_timeout, join_all(publishing))
            .await
            .map_err(|_| BrokerError::Timeout("answering"))?;
        for published in published {
            published.map_err(|error| BrokerError::about("answering", &error))?;
        }
        self.channel = Some(channel);
        Ok(())
    }
}
