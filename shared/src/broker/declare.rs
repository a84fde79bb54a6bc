//! Putting the topology on the broker, or checking that it is there.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ExchangeKind};
use tokio::time::timeout;

use super::BrokerError;
use crate::topology::{Argument, Arguments, Exchange, Queue, Routing};

/// Declares what is missing. What exists with the same arguments stays as it is.
pub async fn declare(
    connection: &Connection,
    exchanges: &[Exchange],
    queues: &[Queue],
    answer_timeout: Duration,
) -> Result<(), BrokerError> {
    let declarer = Declarer::open(connection, answer_timeout, false).await?;
    declarer.exchanges(exchanges).await?;
    declarer.queues(queues).await?;
    for queue in queues {
        let binding = declarer.channel.queue_bind(
            queue.name.as_str().into(),
            queue.bound_to.into(),
            queue.routing_key.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        declarer
            .answered(
                &format!("binding queue {} to {}", queue.name, queue.bound_to),
                binding,
            )
            .await?;
    }
    Ok(())
}

/// Checks that everything is there, and changes nothing. Passive declares compare no arguments.
pub async fn check(
    connection: &Connection,
    exchanges: &[Exchange],
    queues: &[Queue],
    answer_timeout: Duration,
) -> Result<(), BrokerError> {
    let declarer = Declarer::open(connection, answer_timeout, true).await?;
    declarer.exchanges(exchanges).await?;
    declarer.queues(queues).await
}

/// Declares a queue that lives and dies with this connection and binds it with each of the routing keys
/// (a fanout exchange needs one, and does not look at it).
pub async fn declare_own_queue(
    connection: &Connection,
    exchange: &'static str,
    routing_keys: &[String],
    name: &str,
    answer_timeout: Duration,
) -> Result<(), BrokerError> {
    let declarer = Declarer::open(connection, answer_timeout, false).await?;
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..Default::default()
    };
    let declaring = declarer
        .channel
        .queue_declare(name.into(), options, FieldTable::default());
    declarer
        .answered(&format!("queue {name}"), declaring)
        .await?;
    for routing_key in routing_keys {
        let binding = declarer.channel.queue_bind(
            name.into(),
            exchange.into(),
            routing_key.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        declarer
            .answered(&format!("binding queue {name} to {exchange}"), binding)
            .await?;
    }
    Ok(())
}

struct Declarer {
    channel: Channel,
    passive: bool,
    answer_timeout: Duration,
}

impl Declarer {
    async fn open(
        connection: &Connection,
        answer_timeout: Duration,
        passive: bool,
    ) -> Result<Self, BrokerError> {
        let channel = timeout(answer_timeout, connection.create_channel())
            .await
            .map_err(|_| BrokerError::Timeout("opening a channel"))?
            .map_err(|error| BrokerError::about("a channel", &error))?;
        Ok(Self {
            channel,
            passive,
            answer_timeout,
        })
    }

    async fn exchanges(&self, exchanges: &[Exchange]) -> Result<(), BrokerError> {
        for exchange in exchanges {
            let kind = match exchange.routing {
                Routing::Direct => ExchangeKind::Direct,
                Routing::Fanout => ExchangeKind::Fanout,
            };
            let options = ExchangeDeclareOptions {
                durable: true,
                passive: self.passive,
                ..Default::default()
            };
            let declaring = self.channel.exchange_declare(
                exchange.name.into(),
                kind,
                options,
                FieldTable::default(),
            );
            self.answered(&format!("exchange {}", exchange.name), declaring)
                .await?;
        }
        Ok(())
    }

    async fn queues(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        for queue in queues {
            let options = QueueDeclareOptions {
                durable: true,
                passive: self.passive,
                ..Default::default()
            };
            let declaring = self.channel.queue_declare(
                queue.name.as_str().into(),
                options,
                table(&queue.arguments),
            );
            self.answered(&format!("queue {}", queue.name), declaring)
                .await?;
        }
        Ok(())
    }

    async fn answered<T>(
        &self,
        object: &str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        timeout(self.answer_timeout, call)
            .await
            .map_err(|_| BrokerError::Timeout("declaring the topology"))?
            .map_err(|error| BrokerError::about(object, &error))
    }
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match *value {
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text)),
            Argument::Number(number) => AMQPValue::LongLongInt(number),
        };
        table.insert((*name).into(), value);
    }
    table
}
