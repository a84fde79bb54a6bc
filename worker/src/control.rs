//! Hears what the coordinator tells all workers: which runs were cancelled, so that nothing more of them is
//! started and what runs of them is stopped.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use futures::StreamExt;
use lapin::Connection;
use lapin::message::Delivery;
use shared::backoff::Backoff;
use shared::broker::{Ack, BrokerError, Connector, declare_own_queue};
use shared::control::{CONTROL_TYPE, Control};
use shared::id::RunId;
use shared::name::Instance;
use shared::signing::Purpose;
use shared::topology::CONTROL;
use tokio::sync::watch;

/// Unacked control messages. Each is replaced by the next.
const PREFETCH: u16 = 16;

/// The runs that need no work any more; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Cancelled(Arc<watch::Sender<BTreeSet<RunId>>>);

impl Cancelled {
    /// Waits until this run is cancelled.
    pub async fn wait(&self, run: RunId) {
        let mut runs = self.0.subscribe();
        if runs.wait_for(|runs| runs.contains(&run)).await.is_err() {
            // Cannot be: `self` keeps the sender. Nothing is cancelled then.
            std::future::pending::<()>().await;
        }
    }

    /// Whether this run is cancelled.
    #[must_use]
    pub fn contains(&self, run: RunId) -> bool {
        self.0.borrow().contains(&run)
    }

    /// Takes the coordinator's word. It repeats itself, so only a change wakes anybody.
    fn hear(&self, control: Control) {
        let runs = BTreeSet::from_iter(control.cancelled);
        self.0.send_if_modified(|before| {
            let changed = *before != runs;
            if changed {
                *before = runs;
            }
            changed
        });
    }
}

/// Listens, on the connection of whoever has batches.
#[derive(Debug)]
pub struct ControlListener {
    /// Names this worker's own queue.
    pub worker: Instance,
    /// How to talk to the broker.
    pub connector: Connector,
    /// What is kept up to date.
    pub cancelled: Cancelled,
}

impl ControlListener {
    /// Listens for as long as the connection lives. Work goes on without it: a coordinator of an older version
    /// has no such exchange, and a cancelled batch that is run is only wasted.
    pub async fn listen(&self, connection: &Connection) -> Infallible {
        for failures in 1.. {
            let Err(error) = self.consume(connection).await;
            tracing::debug!(%error, "cannot hear the coordinator");
            tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await;
        }
        unreachable!("the loop does not end")
    }

    async fn consume(&self, connection: &Connection) -> Result<Infallible, BrokerError> {
        let queue = format!("{CONTROL}.{}", self.worker);
        let patience = self.connector.answer_timeout();
        declare_own_queue(connection, CONTROL, &[String::new()], &queue, patience).await?;
        let (mut deliveries, settle) = self
            .connector
            .subscribe(connection, &queue, PREFETCH)
            .await?;
        loop {
            let ended = || BrokerError::Lost(format!("the consumer of {queue} was cancelled"));
            let delivery = deliveries.next().await.ok_or_else(ended)??;
            if self.connector.check(Purpose::Control, &delivery).is_ok() {
                self.hear(&delivery);
            }
            let tag = delivery.delivery_tag;
            settle
                .ack(Ack {
                    tag,
                    multiple: false,
                })
                .await?;
        }
    }

    fn hear(&self, delivery: &Delivery) {
        let kind = delivery.properties.kind().as_ref();
        let kind = kind.map_or("", |kind| kind.as_str());
        match serde_json::from_slice::<Control>(&delivery.data) {
            Ok(control) if kind == CONTROL_TYPE => self.cancelled.hear(control),
            _ => tracing::debug!(kind, "a control message that cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn word(cancelled: &[RunId]) -> Control {
        Control {
            coordinator: Instance::from("c".to_owned()),
            cancelled: cancelled.to_vec(),
        }
    }

    #[tokio::test]
    async fn only_the_cancelled_run_is_told() {
        let cancelled = Cancelled::default();
        let (one, other) = (RunId::generate(), RunId::generate());
        let waiting = tokio::spawn({
            let cancelled = cancelled.clone();
            async move { cancelled.wait(one).await }
        });
        cancelled.hear(word(&[one]));
        waiting.await.unwrap();
        assert!(cancelled.contains(one) && !cancelled.contains(other));
        assert!(cancelled.wait(other).now_or_never().is_none());
        assert!(cancelled.wait(one).now_or_never().is_some());
        cancelled.hear(word(&[]));
        assert!(cancelled.wait(one).now_or_never().is_none(), "it is over");
    }
}
