//! Connections: one that consumes, owned by its supervisor, and a small pool for those that publish.

use std::time::Duration;

use deadpool_lapin::{Manager, Object, Pool, PoolError, Runtime, Timeouts};
use lapin::message::Delivery;
use lapin::{Channel, Connection, ConnectionProperties};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::publisher::ConfirmingChannel;
use super::{
    Answering, BrokerError, Deliveries, Greeting, Publisher, Settle, greeting, subscription,
};
use crate::backoff::Backoff;
use crate::config::BrokerConfig;
use crate::name::Instance;
use crate::signing::{Purpose, SignatureError, Signing};

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Knows how to reach the broker.
#[derive(Debug, Clone)]
pub struct Connector {
    url: SecretString,
    address: String,
    instance: Instance,
    answer_timeout: Duration,
    start_timeout: Duration,
    signing: Signing,
}

impl Connector {
    /// For this configuration. `instance` names the connections in the RabbitMQ UI.
    #[must_use]
    pub fn new(config: &BrokerConfig, instance: &Instance) -> Self {
        Self {
            url: config.client_url(),
            address: config.address(),
            instance: instance.clone(),
            answer_timeout: config.answer_timeout.get(),
            start_timeout: config.start_timeout.get(),
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
        let connecting = Connection::connect(self.url.expose_secret(), self.properties(purpose));
        match timeout(self.answer_timeout, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(BrokerError::connecting(&self.address, &error)),
            Err(_) => Err(BrokerError::Unreachable {
                address: self.address.clone(),
                problem: format!("no answer within {:?}", self.answer_timeout),
            }),
        }
    }

    /// Tries for as long as a starting process may wait, and says why it could not.
    ///
    /// A wrong password or vhost is said at once: waiting would not mend it.
    pub async fn connect_at_start(&self, purpose: &str) -> Result<Connection, BrokerError> {
        let give_up = Instant::now() + self.start_timeout;
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

    /// How the broker introduces itself; `None` when that cannot be heard: over TLS, or because it is no
    /// greeting.
    pub async fn greeting(&self) -> Result<Option<Greeting>, BrokerError> {
        let unreachable = |problem: String| BrokerError::Unreachable {
            address: self.address.clone(),
            problem,
        };
        let url = Url::parse(self.url.expose_secret()).map_err(|e| unreachable(e.to_string()))?;
        let Some(host) = url.host_str().filter(|_| url.scheme() == "amqp") else {
            return Ok(None);
        };
        let port = url.port().unwrap_or(5672);
        match timeout(self.answer_timeout, greeting::read(host, port)).await {
            Ok(read) => read.map_err(|error| unreachable(error.to_string())),
            Err(_) => Err(BrokerError::Timeout("greeting")),
        }
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
        subscription::subscribe(connection, queue, &tag, prefetch, self.answer_timeout).await
    }

    /// Signs what is published.
    pub(super) fn signing(&self) -> &Signing {
        &self.signing
    }

    /// Longest wait for one answer.
    #[must_use]
    pub fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// The pool of publishing connections.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn publishing_pool(&self) -> PublishingPool {
        let connector = self.clone();
        let manager = Manager::new(
            self.url.expose_secret(),
            move || connector.properties("publish"),
            lapin::runtime::default_runtime().expect("called inside a tokio runtime"),
        );
        let limit = Some(self.answer_timeout);
        let pool = Pool::builder(manager)
            .max_size(PublishingPool::CONNECTIONS)
            .timeouts(Timeouts {
                wait: limit,
                create: limit,
                recycle: limit,
            })
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a runtime is set, which is all that the builder checks");
        PublishingPool {
            pool,
            address: self.address.clone(),
            answer_timeout: self.answer_timeout,
            signing: self.signing.clone(),
        }
    }

    fn properties(&self, purpose: &str) -> ConnectionProperties {
        let name = format!("{} ({purpose})", self.instance);
        ConnectionProperties::default().with_connection_name(name.into())
    }
}

/// The publishing connections of a process: pooled, because publishers come and go with their channels
/// and a connection that broke is replaced when the next publisher asks.
#[derive(Debug, Clone)]
pub struct PublishingPool {
    pool: Pool,
    address: String,
    answer_timeout: Duration,
    signing: Signing,
}

impl PublishingPool {
    /// One connection carries all publishers of a process, each on its own channel. A second would
    /// only help when a socket is the limit, and cost the broker memory for every process.
    const CONNECTIONS: usize = 1;

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

    async fn connection(&self) -> Result<Object, BrokerError> {
        match self.pool.get().await {
            Ok(connection) => Ok(connection),
            Err(PoolError::Backend(error)) => Err(BrokerError::connecting(&self.address, &error)),
            Err(error) => Err(BrokerError::Unreachable {
                address: self.address.clone(),
                problem: error.to_string(),
            }),
        }
    }
}
