//! The coordinator's hand on the topology: declares it, or checks it where somebody else owns it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lapin::Connection;
use shared::broker::{self, BrokerError, Connector, Depth};
use shared::config::{Config, TopologyMode};
use shared::topology::{self, Exchange, Queue};

/// What has to be on the broker, and who puts it there.
#[derive(Debug, Clone)]
pub struct Topology {
    connector: Connector,
    mode: TopologyMode,
    exchanges: Vec<Exchange>,
    queues: Vec<Queue>,
    /// When each queue was last found missing and declared: nothing that was in it before is left.
    mended: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Topology {
    /// For the configured pipelines and lanes.
    #[must_use]
    pub fn new(config: &Config, connector: Connector) -> Self {
        Self {
            connector,
            mode: config.broker.topology,
            exchanges: topology::exchanges(),
            queues: topology::queues(config.pipelines.keys(), config.lanes),
            mended: Arc::default(),
        }
    }

    /// The names of all queues.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().map(|queue| queue.name.as_str())
    }

    /// When this queue was last found missing and declared; `None` when it was always there.
    #[must_use]
    pub fn mended(&self, queue: &str) -> Option<Instant> {
        self.lock().get(queue).copied()
    }

    /// Puts it there, or checks that it is, over an open connection.
    pub async fn ensure_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let patience = self.connector.answer_timeout();
        match self.mode {
            TopologyMode::Declare => {
                let depths = broker::depths(connection, self.queues(), patience).await?;
                let found = Instant::now();
                broker::declare(connection, &self.exchanges, &self.queues, patience).await?;
                self.remember(&depths, found);
                Ok(())
            }
            TopologyMode::Check => {
                broker::check(connection, &self.exchanges, &self.queues, patience).await
            }
        }
    }

    /// The same over a connection of its own: for a stage that found something missing.
    pub async fn ensure(&self) -> Result<(), BrokerError> {
        let connection = self.connector.connect("topology").await?;
        let ensured = self.ensure_on(&connection).await;
        self.connector.goodbye(connection).await;
        ensured
    }

    fn remember(&self, depths: &BTreeMap<String, Depth>, found: Instant) {
        let missing: Vec<&str> = depths
            .iter()
            .filter(|(_, depth)| **depth == Depth::Missing)
            .map(|(queue, _)| queue.as_str())
            .collect();
        if !missing.is_empty() {
            let queues = missing.join(",");
            tracing::info!(
                count = missing.len(),
                queues,
                "declared queues that were not there"
            );
        }
        let mut mended = self.lock();
        mended.extend(missing.into_iter().map(|queue| (queue.to_owned(), found)));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Instant>> {
        self.mended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
