//! Listens to the workers and keeps the [`Fleet`] up to date.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use lapin::message::Delivery;
use shared::broker::{Ack, BrokerError, Connector, declare_own_queue};
use shared::name::{Instance, PipelineName};
use shared::presence::{PRESENCE_TYPE, Presence};
use shared::topology::PRESENCE;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::consuming::{ConsumeError, Consumer, Failures};
use crate::fleet::Fleet;
use crate::notice::Notice;

/// The fleet, shared with the API. The lock is held for a look, never across an await.
pub type SharedFleet = Arc<Mutex<Fleet>>;

/// Unacked presence messages. They are small and every one is replaced by the next.
const PREFETCH: u16 = 256;
/// How often silent workers are looked for.
const TICK: Duration = Duration::from_secs(1);

/// The listener.
pub struct PresenceStage {
    /// Names this coordinator's own queue.
    pub instance: Instance,
    /// How to reach the broker.
    pub connector: Connector,
    /// What is kept up to date.
    pub fleet: SharedFleet,
    /// The slots that the dispatcher was told of last, whatever happened to the connection since.
    pub told: HashMap<PipelineName, u32>,
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
    /// Ends the stage.
    pub draining: CancellationToken,
}

#[async_trait]
impl Consumer for PresenceStage {
    async fn consume(&mut self, failures: &mut Failures) -> Result<(), ConsumeError> {
        let Some(connection) = self.connector.reconnect("presence", &self.draining).await else {
            return Ok(());
        };
        let queue = format!("{PRESENCE}.{}", self.instance);
        declare_own_queue(
            &connection,
            PRESENCE,
            &[String::new()],
            &queue,
            self.connector.answer_timeout(),
        )
        .await?;
        let (mut deliveries, settle) = self
            .connector
            .subscribe(&connection, &queue, PREFETCH)
            .await?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                delivery = deliveries.next() => {
                    let ended = || BrokerError::Lost(format!("the consumer of {queue} was cancelled"));
                    let delivery = delivery.ok_or_else(ended)??;
                    self.hear(&delivery);
                    failures.forget();
                    settle.ack(Ack { tag: delivery.delivery_tag, multiple: false }).await?;
                }
                _ = tick.tick() => self.forget_silent(),
                () = self.draining.cancelled() => return Ok(()),
            }
            self.tell().await;
        }
    }
}

impl PresenceStage {
    fn hear(&self, delivery: &Delivery) {
        let kind = delivery
            .properties
            .kind()
            .as_ref()
            .map_or("", |kind| kind.as_str());
        match serde_json::from_slice::<Presence>(&delivery.data) {
            Ok(presence) if kind == PRESENCE_TYPE => self.fleet().hear(presence, Instant::now()),
            _ => tracing::debug!(kind, "a presence message that cannot be read"),
        }
    }

    fn forget_silent(&self) {
        for worker in self.fleet().forget_silent(Instant::now()) {
            tracing::warn!(%worker, "a worker fell silent");
        }
    }

    /// Passes changes on to the dispatcher, and only changes.
    async fn tell(&mut self) {
        let slots = self.fleet().slots();
        if slots != self.told {
            self.told.clone_from(&slots);
            let _ = self.notices.send(Notice::Slots(slots)).await;
        }
    }

    fn fleet(&self) -> std::sync::MutexGuard<'_, Fleet> {
        // A panic while the lock was held leaves a fleet that the next presence messages mend.
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
