//! Listens to the workers and keeps the [`Fleet`] up to date.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use lapin::message::Delivery;
use shared::broker::{Ack, BrokerError, Connector, declare_own_queue};
use shared::name::{Instance, PipelineName};
use shared::presence::{PRESENCE_TYPE, Presence};
use shared::signing::Purpose;
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
/// Beyond the time that makes a batch lost: what is remembered must outlast it.
const REMEMBER_MARGIN: Duration = Duration::from_secs(30);

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
    /// How many lanes there are: a worker that believes otherwise misses some, or waits at queues that are not.
    pub lanes: u16,
    /// How long nobody may have had a batch that is out.
    pub lost_after: Duration,
    /// Ends the stage.
    pub draining: CancellationToken,
}

#[async_trait]
impl Consumer for PresenceStage {
    async fn consume(&mut self, failures: &mut Failures) -> Result<(), ConsumeError> {
        let ended = self.listen(failures).await;
        self.fleet().is_deaf();
        ended
    }
}

impl PresenceStage {
    async fn listen(&mut self, failures: &mut Failures) -> Result<(), ConsumeError> {
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
        self.fleet().listens(Instant::now());
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                delivery = deliveries.next() => {
                    let ended = || BrokerError::Lost(format!("the consumer of {queue} was cancelled"));
                    let delivery = delivery.ok_or_else(ended)??;
                    if self.connector.check(Purpose::Presence, &delivery).is_ok() {
                        self.hear(&delivery);
                    }
                    failures.forget();
                    settle.ack(Ack { tag: delivery.delivery_tag, multiple: false }).await?;
                }
                _ = tick.tick() => self.forget_silent(),
                () = self.draining.cancelled() => return Ok(()),
            }
            self.tell().await;
        }
    }

    fn hear(&self, delivery: &Delivery) {
        let kind = delivery
            .properties
            .kind()
            .as_ref()
            .map_or("", |kind| kind.as_str());
        match serde_json::from_slice::<Presence>(&delivery.data) {
            Ok(presence) if kind == PRESENCE_TYPE => {
                let (worker, lanes) = (presence.worker.clone(), presence.lanes);
                let new = self
                    .fleet()
                    .hear(presence, Instant::now(), Timestamp::now());
                if new && lanes != 0 && lanes != self.lanes {
                    tracing::warn!(%worker, worker.lanes = lanes, lanes = self.lanes, "a worker believes in another number of lanes: give both the same config");
                }
            }
            _ => tracing::debug!(kind, "a presence message that cannot be read"),
        }
    }

    fn forget_silent(&self) {
        let remember = self.lost_after + REMEMBER_MARGIN;
        let silent = self.fleet().forget_silent(Instant::now(), remember);
        for worker in silent {
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
