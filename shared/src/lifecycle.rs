//! How a process stops: the first signal drains, a second one or the end of patience stops at once, and a
//! task that ends unasked stops everything with an error.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exit;

/// How long tasks may take to drop everything: long enough to end a command that they started. What takes
/// longer is left to the end of the process.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The process's tasks and the two tokens that end them.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    draining: CancellationToken,
    stopping: CancellationToken,
    failed: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// Nothing runs yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the process should take nothing new and finish what it has.
    #[must_use]
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Cancelled when the process should drop everything.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Starts a task that lives as long as the process. Ending before it was asked to is a failure,
    /// whatever it returns; so is a panic.
    pub fn spawn<E>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: std::fmt::Display + Send + 'static,
    {
        let lifecycle = self.clone();
        let inner = self.tasks.spawn(task);
        self.tasks.spawn(async move {
            let problem = match inner.await {
                Ok(Ok(())) if lifecycle.draining.is_cancelled() => return,
                Ok(Ok(())) => "it ended by itself".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => panic.to_string(),
            };
            tracing::error!(task = name, error = %problem, "a task died, stopping");
            lifecycle.failed.cancel();
            lifecycle.draining.cancel();
        });
    }

    /// Waits for a signal or a failure, drains for at most `patience`, and gives the exit code.
    pub async fn run(self, patience: Duration) -> std::io::Result<u8> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
            () = self.draining.cancelled() => {}
        }
        self.draining.cancel();
        self.tasks.close();
        tokio::select! {
            drained = timeout(patience, self.tasks.wait()) => {
                if drained.is_err() {
                    tracing::warn!(?patience, "not drained in time, stopping");
                }
            }
            _ = terminate.recv() => tracing::warn!("second signal: stopping at once"),
            _ = interrupt.recv() => tracing::warn!("second signal: stopping at once"),
        }
        self.stopping.cancel();
        let _ = timeout(LAST_WORDS, self.tasks.wait()).await;
        Ok(if self.failed.is_cancelled() {
            exit::FAILED
        } else {
            exit::OK
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_dies_stops_the_process_with_an_error() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("doomed", async { Err::<(), _>("out of luck") });
        let code = lifecycle.run(Duration::from_secs(5)).await.unwrap();
        assert_eq!(code, exit::FAILED);
    }

    #[tokio::test]
    async fn a_task_that_ends_when_asked_is_fine() {
        let lifecycle = Lifecycle::new();
        let asked = lifecycle.draining();
        lifecycle.spawn("obedient", async move {
            asked.cancelled().await;
            Ok::<(), std::convert::Infallible>(())
        });
        lifecycle.draining().cancel();
        assert_eq!(
            lifecycle.run(Duration::from_secs(5)).await.unwrap(),
            exit::OK
        );
    }
}
