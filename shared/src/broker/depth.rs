//! How full queues are, as the broker itself says: exact and now, unlike the management plugin's samples.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::BrokerError;

/// One queue at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// It is there. A quorum queue that has no leader just now says zero twice.
    There {
        /// Messages that wait for a consumer; what was delivered and not acked is not counted.
        ready: u32,
        /// How many consumers it has.
        consumers: u32,
    },
    /// There is no such queue.
    Missing,
}

/// Asks for each of these queues, through passive declares.
pub async fn depths<'a>(
    connection: &Connection,
    queues: impl IntoIterator<Item = &'a str>,
    answer_timeout: Duration,
) -> Result<BTreeMap<String, Depth>, BrokerError> {
    let mut depths = BTreeMap::new();
    let mut channel = open(connection, answer_timeout).await?;
    for queue in queues {
        let depth = match look(&channel, queue, answer_timeout).await {
            Ok(depth) => depth,
            Err(BrokerError::Missing { .. }) => {
                // A question about what is not there costs the channel.
                channel = open(connection, answer_timeout).await?;
                Depth::Missing
            }
            Err(error) => return Err(error),
        };
        depths.insert(queue.to_owned(), depth);
    }
    let closing = channel.close(200, "done".into());
    timeout(answer_timeout, closing)
        .await
        .map_err(|_| BrokerError::Timeout("closing a channel"))?
        .map_err(|error| BrokerError::about("a channel", &error))?;
    Ok(depths)
}

async fn open(connection: &Connection, answer_timeout: Duration) -> Result<Channel, BrokerError> {
    timeout(answer_timeout, connection.create_channel())
        .await
        .map_err(|_| BrokerError::Timeout("opening a channel"))?
        .map_err(|error| BrokerError::about("a channel", &error))
}

async fn look(
    channel: &Channel,
    queue: &str,
    answer_timeout: Duration,
) -> Result<Depth, BrokerError> {
    let options = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let asking = channel.queue_declare(queue.into(), options, FieldTable::default());
    let found = timeout(answer_timeout, asking)
        .await
        .map_err(|_| BrokerError::Timeout("asking for a queue's depth"))?
        .map_err(|error| BrokerError::about(&format!("queue {queue}"), &error))?;
    Ok(Depth::There {
        ready: found.message_count(),
        consumers: found.consumer_count(),
    })
}
