//! How every stage that consumes stays alive: it builds its consumer again after any loss, with a growing
//! pause, and has the topology mended when a queue is missing.

use std::convert::Infallible;

use async_trait::async_trait;
use shared::backoff::Backoff;
use shared::broker::BrokerError;
use tokio_util::sync::CancellationToken;

use crate::ledger::LedgerError;
use crate::topology::Topology;

/// Why a stage lost its consumer.
#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    /// The broker broke it.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// What was consumed could not be recorded.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Failures in a row, which the stage sets back once it has got something done: a consumer that can be
/// opened and then breaks at the same message every time does not spin.
#[derive(Debug, Default)]
pub struct Failures(u32);

impl Failures {
    /// Something worked.
    pub fn forget(&mut self) {
        self.0 = 0;
    }
}

/// A stage that consumes.
#[async_trait]
pub trait Consumer: Send + 'static {
    /// Connects and consumes. Ends well only when the process drains.
    async fn consume(&mut self, failures: &mut Failures) -> Result<(), ConsumeError>;
}

/// Has the stage consume until the process drains.
pub async fn keep_consuming(
    stage: &'static str,
    mut consumer: impl Consumer,
    topology: Topology,
    draining: CancellationToken,
) -> Result<(), Infallible> {
    let mut failures = Failures::default();
    while !draining.is_cancelled() {
        let Err(error) = consumer.consume(&mut failures).await else {
            break;
        };
        failures.0 += 1;
        tracing::warn!(stage, %error, "lost a consumer, building it again");
        metrics::counter!("tidegate_consumers_lost_total", "stage" => stage).increment(1);
        if matches!(error, ConsumeError::Broker(BrokerError::Missing { .. }))
            && let Err(error) = topology.ensure().await
        {
            tracing::error!(%error, "the topology is incomplete and cannot be mended");
        }
        tokio::select! {
            () = tokio::time::sleep(Backoff::RECONNECT.draw(failures.0)) => {}
            () = draining.cancelled() => {}
        }
    }
    Ok(())
}
