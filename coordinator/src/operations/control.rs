//! Tells the workers which runs were cancelled and still have batches out, over `tidegate.control`: at
//! once when that changes, and again every two seconds, because the messages are transient and workers
//! come and go. Nothing depends on it but work that is saved.
//!
//! It speaks also when there is nothing to say: a broker that blocks publishers tells only those who
//! publish, and an idle coordinator should know it as well.

use std::convert::Infallible;

use lapin::BasicProperties;
use shared::broker::{Message, PublishingPool, TRANSIENT};
use shared::control::{CONTROL_TYPE, Control, INTERVAL};
use shared::id::RunId;
use shared::name::Instance;
use shared::topology::CONTROL;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Most runs that one message names. The rest are named when these have ended; until then their batches are
/// worked on and their outcomes settled.
const MAX_RUNS: usize = 1_000;

/// The stage.
pub struct ControlStage {
    /// Who speaks.
    pub instance: Instance,
    /// Where publishers come from.
    pub publishing: PublishingPool,
    /// Which cancelled runs still have batches pending or out.
    pub cancelling: watch::Receiver<Vec<RunId>>,
    /// Ends the stage.
    pub draining: CancellationToken,
}

impl ControlStage {
    /// Speaks until draining.
    pub async fn run(mut self) -> Result<(), Infallible> {
        let mut publisher = self.publishing.publisher();
        loop {
            let cancelled = self.cancelling.borrow_and_update().clone();
            let messages = [self.message(cancelled)];
            tokio::select! {
                answer = publisher.publish(&messages) => if let Err(error) = answer {
                    // The next one comes in two seconds.
                    tracing::debug!(%error, "a control message was not published");
                },
                () = self.draining.cancelled() => return Ok(()),
            }
            tokio::select! {
                changed = self.cancelling.changed() => if changed.is_err() {
                    // Nobody cancels any more: the process ends.
                    self.draining.cancelled().await;
                    return Ok(());
                },
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.draining.cancelled() => return Ok(()),
            }
        }
    }

    fn message(&self, mut cancelled: Vec<RunId>) -> Message {
        cancelled.truncate(MAX_RUNS);
        let control = Control {
            coordinator: self.instance.clone(),
            cancelled,
        };
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_type(CONTROL_TYPE.into())
            .with_app_id("tidegate-coordinator".into())
            // A fanout without workers returns it, and returns are recognised by their message id.
            .with_message_id("control".into())
            .with_delivery_mode(TRANSIENT);
        Message {
            exchange: CONTROL,
            routing_key: String::new(),
            properties,
            body: serde_json::to_vec(&control).expect("ids serialise"),
        }
    }
}
