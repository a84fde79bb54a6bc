//! Looks every five seconds how full the queues are, and has those that are missing declared. Who needs to
//! know watches: [`crate::reconcile`] for what is lost, [`crate::levels`] for what piles up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::Connection;
use shared::broker::{BrokerError, Connector, Depth, PublishingPool, depths};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::consuming::{ConsumeError, Consumer, Failures};
use crate::topology::Topology;

/// How often queues are looked at. Each look costs the broker a round trip a queue.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// All queues, as one look found them.
#[derive(Debug, Clone)]
pub struct Depths {
    /// By name.
    pub queues: BTreeMap<String, Depth>,
    /// Whether the broker takes no publishes: nobody's presence can be heard then.
    pub blocked: bool,
    /// When the look began.
    pub at: Instant,
}

/// The newest look; `None` while the broker cannot be asked.
pub type Looks = watch::Receiver<Option<Arc<Depths>>>;

/// The stage.
pub struct DepthsStage {
    /// How to reach the broker.
    pub connector: Connector,
    /// Whose connection says whether the broker blocks.
    pub publishing: PublishingPool,
    /// Which queues there should be.
    pub topology: Topology,
    /// Who watches.
    pub looks: watch::Sender<Option<Arc<Depths>>>,
    /// Ends the stage.
    pub draining: CancellationToken,
}

#[async_trait]
impl Consumer for DepthsStage {
    async fn consume(&mut self, failures: &mut Failures) -> Result<(), ConsumeError> {
        let ended = self.look_on(failures).await;
        self.looks.send_replace(None);
        Ok(ended?)
    }
}

impl DepthsStage {
    async fn look_on(&self, failures: &mut Failures) -> Result<(), BrokerError> {
        let Some(connection) = self.connector.reconnect("depths", &self.draining).await else {
            return Ok(());
        };
        let patience = self.connector.answer_timeout();
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.draining.cancelled() => return Ok(()),
            }
            let at = Instant::now();
            let queues = depths(&connection, self.topology.queues(), patience).await?;
            let blocked = self.publishing.is_blocked().await;
            let looked = Arc::new(Depths {
                queues,
                blocked,
                at,
            });
            // First of all: what is missing is for others to know, too, and may be nobody's here to declare.
            self.looks.send_replace(Some(looked.clone()));
            self.mend(&connection, &looked.queues).await;
            failures.forget();
        }
    }

    /// Has what is missing declared, unless somebody else owns the topology: then that is said.
    async fn mend(&self, connection: &Connection, queues: &BTreeMap<String, Depth>) {
        let missing: Vec<&str> = queues
            .iter()
            .filter(|(_, depth)| **depth == Depth::Missing)
            .map(|(name, _)| name.as_str())
            .collect();
        if missing.is_empty() {
            return;
        }
        tracing::warn!(queues = missing.join(","), "queues are missing");
        metrics::counter!("tidegate_missing_queues_total").increment(missing.len() as u64);
        if let Err(error) = self.topology.ensure_on(connection).await {
            tracing::error!(%error, "the topology is incomplete and cannot be mended");
        }
    }
}
