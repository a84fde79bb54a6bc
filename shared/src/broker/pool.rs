//! The publishing connections of a process: pooled, because publishers come and go with their channels
//! and a connection that broke is replaced when the next publisher asks.

use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, Timeouts,
};
use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::publisher::ConfirmingChannel;
use super::{Answering, BrokerError, Connector, Publisher};
use crate::signing::Signing;

/// Makes the connections.
#[derive(Debug)]
struct Opener(Connector);

impl Manager for Opener {
    type Type = Connection;
    type Error = BrokerError;

    async fn create(&self) -> Result<Connection, BrokerError> {
        self.0.open("publish").await
    }

    async fn recycle(
        &self,
        connection: &mut Connection,
        _: &Metrics,
    ) -> RecycleResult<BrokerError> {
        if connection.status().connected() {
            return Ok(());
        }
        Err(RecycleError::message("the connection has ended"))
    }
}

/// The pool; cheap to clone.
#[derive(Debug, Clone)]
pub struct PublishingPool {
    pool: Pool<Opener>,
    address: String,
    answer_timeout: Duration,
    signing: Signing,
}

impl PublishingPool {
    /// One connection carries all publishers of a process, each on its own channel. A second would
    /// only help when a socket is the limit, and cost the broker memory for every process.
    const CONNECTIONS: usize = 1;

    pub(super) fn new(connector: Connector) -> Self {
        let (address, answer_timeout) =
            (connector.address().to_owned(), connector.answer_timeout());
        let signing = connector.signing().clone();
        let (limit, create) = (Some(answer_timeout), Some(connector.connect_timeout()));
        let pool = Pool::builder(Opener(connector))
            .max_size(Self::CONNECTIONS)
            .timeouts(Timeouts {
                wait: limit,
                create,
                recycle: limit,
            })
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a runtime is set, which is all that the builder checks");
        Self {
            pool,
            address,
            answer_timeout,
            signing,
        }
    }

    /// A publisher for one task. It connects when it first publishes.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        Publisher::new(self.clone())
    }

    /// Whether the broker takes no publishes just now, because memory or disk run short. It says so only to
    /// those who publish; a broker that cannot be reached is no blocked one.
    pub async fn is_blocked(&self) -> bool {
        let connection = self.pool.get().await;
        connection.is_ok_and(|connection| connection.status().blocked())
    }

    /// What sends answers, for one task.
    #[must_use]
    pub fn answering(&self) -> Answering {
        Answering::new(self.clone(), self.answer_timeout)
    }

    /// A channel of its own. The connection goes back to the pool at once: it is shared, and the channel
    /// keeps it open.
    pub(super) async fn channel(&self) -> Result<ConfirmingChannel, BrokerError> {
        let connection = self.connection().await?;
        ConfirmingChannel::open(&connection, self.answer_timeout, self.signing.clone()).await
    }

    /// Signs what these publishers send.
    pub(super) fn signing(&self) -> &Signing {
        &self.signing
    }

    /// The same without confirms.
    pub(super) async fn plain_channel(&self) -> Result<Channel, BrokerError> {
        let connection = self.connection().await?;
        timeout(self.answer_timeout, connection.create_channel())
            .await
            .map_err(|_| BrokerError::Timeout("opening a channel"))?
            .map_err(|error| BrokerError::about("a channel", &error))
    }

    async fn connection(&self) -> Result<Object<Opener>, BrokerError> {
        match self.pool.get().await {
            Ok(connection) => Ok(connection),
            Err(PoolError::Backend(error)) => Err(error),
            Err(error) => Err(BrokerError::Unreachable {
                address: self.address.clone(),
                problem: error.to_string(),
            }),
        }
    }
}
