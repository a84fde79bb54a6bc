//! Listens to the workers and keeps the [`Fleet`] up to date.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use lapin::message::Delivery;
use shared::backoff::Backoff;
use shared::broker::{Ack, BrokerError, Connector, declare_own_queue};
use shared::name::{Instance, PipelineName};
use shared::presence::{PRESENCE_TYPE, Presence};
use shared::topology::PRESENCE;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

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
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
    /// Ends the stage.
    pub draining: CancellationToken,
}

impl PresenceStage {
    /// Runs until draining.
    pub async fn run(self) -> Result<(), std::convert::Infallible> {
        let mut failures = 0;
        let mut known = HashMap::new();
        while !self.draining.is_cancelled() {
            match self.listen(&mut failures, &mut known).await {
                Ok(()) => break,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "lost the workers' presence, listening again");
                    tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await;
                }
            }
        }
        Ok(())
    }

    async fn listen(
        &self,
        failures: &mut u32,
        known: &mut HashMap<PipelineName, u32>,
    ) -> Result<(), BrokerError> {
        let Some(connection) = self.connector.reconnect("presence", &self.draining).await else {
            return Ok(());
        };
        let queue = format!("{PRESENCE}.{}", self.instance);
        declare_own_queue(
            &connection,
            PRESENCE,
            &queue,
            self.connector.answer_timeout(),
        )
        .await?;
        let (mut deliveries, settle) = self
            .connector
            .subscribe(&connection, &queue, PREFETCH)
            .await?;
        *failures = 0;
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                delivery = deliveries.next() => {
                    let ended = || BrokerError::Lost(format!("the consumer of {queue} was cancelled"));
                    let delivery = delivery.ok_or_else(ended)??;
                    self.hear(&delivery);
                    settle.ack(Ack { tag: delivery.delivery_tag, multiple: false }).await?;
                }
                _ = tick.tick() => self.forget_silent(),
                () = self.draining.cancelled() => return Ok(()),
            }
            self.tell(known).await;
        }
    }

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
    async fn tell(&self, known: &mut HashMap<PipelineName, u32>) {
        let slots = self.fleet().slots();
        if slots != *known {
            known.clone_from(&slots);
            let _ = self.notices.send(Notice::Slots(slots)).await;
        }
    }

    fn fleet(&self) -> std::sync::MutexGuard<'_, Fleet> {
        // A panic while the lock was held leaves a fleet that the next presence messages mend.
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
