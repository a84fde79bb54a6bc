//! Connections: one that consumes, owned by its supervisor, and a small [pool](super::pool) for those that publish.
//! Whatever is needed to make one, password and certificates, is read when it is made.

use std::time::Duration;

use lapin::message::Delivery;
use lapin::{Connection, ConnectionProperties};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{BrokerError, Deliveries, Greeting, PublishingPool, Settle, subscription, transport};
use crate::backoff::Backoff;
use crate::config::BrokerConfig;
use crate::name::Instance;
use crate::signing::{Purpose, SignatureError, Signing};

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Knows how to reach the broker.
#[derive(Debug, Clone)]
pub struct Connector {
    config: BrokerConfig,
    address: String,
    instance: Instance,
    signing: Signing,
}

impl Connector {
    /// For this configuration. `instance` names the connections in the RabbitMQ UI.
    #[must_use]
    pub fn new(config: &BrokerConfig, instance: &Instance) -> Self {
        Self {
            config: config.clone(),
            address: config.address(),
            instance: instance.clone(),
            signing: Signing::default(),
        }
    }

    /// The same, with everything that is published signed, and deliveries [checked](Self::check).
    #[must_use]
    pub fn with_signing(self, signing: Signing) -> Self {
        Self { signing, ..self }
    }

    /// Whether a delivery's signature lets it be believed. Stages ask before they parse it.
    pub fn check(&self, purpose: Purpose, delivery: &Delivery) -> Result<(), SignatureError> {
        self.signing
            .check(purpose, &delivery.properties, &delivery.data)
    }

    /// Host, port and vhost, without user and password.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// One try. `purpose` is added to the connection's name.
    pub async fn connect(&self, purpose: &str) -> Result<Connection, BrokerError> {
        let patience = self.connect_timeout();
        match timeout(patience, self.open(purpose)).await {
            Ok(opened) => opened,
            Err(_) => Err(BrokerError::Unreachable {
                address: self.address.clone(),
                problem: format!("no answer within {patience:?}"),
            }),
        }
    }

    /// The same without an end to its patience.
    pub(super) async fn open(&self, purpose: &str) -> Result<Connection, BrokerError> {
        let name = format!("{} ({purpose})", self.instance);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        transport::connect(&self.config, properties).await
    }

    /// Tries for as long as a starting process may wait, and says why it could not.
    ///
    /// A wrong password or vhost is said at once: waiting would not mend it.
    pub async fn connect_at_start(&self, purpose: &str) -> Result<Connection, BrokerError> {
        let give_up = Instant::now() + self.config.start_timeout.get();
        for failures in 1.. {
            match self.connect(purpose).await {
                Ok(connection) => return Ok(connection),
                Err(error) if error.is_configuration() || Instant::now() >= give_up => {
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, "waiting for the broker"),
            }
            sleep(Backoff::RECONNECT.draw(failures)).await;
        }
        unreachable!("the loop only ends by returning")
    }

    /// Tries until it works or `stop` is cancelled (`None`). For a process that has worked before:
    /// whatever is wrong now may be mended while it waits.
    pub async fn reconnect(&self, purpose: &str, stop: &CancellationToken) -> Option<Connection> {
        for failures in 1.. {
            let connected = tokio::select! {
                connected = self.connect(purpose) => connected,
                () = stop.cancelled() => return None,
            };
            match connected {
                Ok(connection) => return Some(connection),
                Err(error) => tracing::warn!(%error, failures, "reconnecting to the broker"),
            }
            tokio::select! {
                () = sleep(Backoff::RECONNECT.draw(failures)) => {}
                () = stop.cancelled() => return None,
            }
        }
        None
    }

    /// How the broker introduces itself; `None` when it is no greeting.
    pub async fn greeting(&self) -> Result<Option<Greeting>, BrokerError> {
        let reading = transport::greeting(&self.config);
        timeout(self.answer_timeout(), reading)
            .await
            .unwrap_or(Err(BrokerError::Timeout("greeting")))
    }

    /// Closes a connection. One that cannot say goodbye is noticed by the broker anyway.
    pub async fn goodbye(&self, connection: Connection) {
        let closing = connection.close(200, "done".into());
        match timeout(GOODBYE, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection ended without a goodbye"),
            Err(_) => tracing::debug!("the broker did not answer a goodbye"),
        }
    }

    /// Opens a channel on `connection` and consumes from `queue`, with at most `prefetch` unacked deliveries.
    pub async fn subscribe(
        &self,
        connection: &Connection,
        queue: &str,
        prefetch: u16,
    ) -> Result<(Deliveries, Settle), BrokerError> {
        let tag = format!("{}.{queue}", self.instance);
        subscription::subscribe(connection, queue, &tag, prefetch, self.answer_timeout()).await
    }

    /// Signs what is published.
    pub(super) fn signing(&self) -> &Signing {
        &self.signing
    }

    /// Longest wait for one answer.
    #[must_use]
    pub fn answer_timeout(&self) -> Duration {
        self.config.answer_timeout.get()
    }

    /// Longest wait for a connection.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.config.connect_timeout.get()
    }

    /// The pool of publishing connections.
    #[must_use]
    pub fn publishing_pool(&self) -> PublishingPool {
        PublishingPool::new(self.clone())
    }
}
