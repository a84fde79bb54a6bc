//! The coordinator's hand on the topology: declares it, or checks it where somebody else owns it.

use lapin::Connection;
use shared::broker::{self, BrokerError, Connector};
use shared::config::{Config, TopologyMode};
use shared::topology::{self, Exchange, Queue};

/// What has to be on the broker, and who puts it there.
#[derive(Debug, Clone)]
pub struct Topology {
    connector: Connector,
    mode: TopologyMode,
    exchanges: Vec<Exchange>,
    queues: Vec<Queue>,
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
        }
    }

    /// Puts it there, or checks that it is, over an open connection.
    pub async fn ensure_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let patience = self.connector.answer_timeout();
        match self.mode {
            TopologyMode::Declare => {
                broker::declare(connection, &self.exchanges, &self.queues, patience).await
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
}
