//! Schedules: submit runs by themselves, at the times that the config says. A schedule is a client like any
//! other: its run goes through [`SubmissionStage`], with an idempotency key made of its name and the time of
//! the firing. So each firing gives one run, whatever restarts happen: a crash between submitting and
//! remembering submits the same key again, and gets the same run.
//!
//! One task a schedule: one that the coordinator refuses for a while (`queue_full`) holds up no other.

mod due;
mod keeper;
mod memory;
mod view;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use jiff::Timestamp;
use shared::backoff::Backoff;
use shared::config::{ScheduleConfig, ScheduleName};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ledger::{LedgerError, Memory, MemoryLedger};
use crate::submission::SubmissionStage;
use keeper::Keeper;
use memory::Remembered;
pub use view::{ScheduleView, Schedules};

/// The stage.
pub struct ScheduleStage {
    /// Where runs are submitted.
    pub submission: Arc<SubmissionStage>,
    /// Where it is remembered up to when schedules were looked after.
    pub ledger: Arc<dyn MemoryLedger>,
    /// What people see of it.
    pub shown: Schedules,
    /// Ends the stage.
    pub draining: CancellationToken,
}

/// Schedules by name, as configured.
type Configured = BTreeMap<ScheduleName, ScheduleConfig>;

impl ScheduleStage {
    /// Runs until draining.
    pub async fn run(self, configured: Configured) -> Result<(), Infallible> {
        let Some(keepers) = self.keepers(configured).await else {
            return Ok(());
        };
        let mut tasks = JoinSet::new();
        for keeper in keepers {
            tasks.spawn(keeper.run(self.draining.clone()));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        self.draining.cancelled().await;
        Ok(())
    }

    /// Somebody for each schedule that is switched on. `None` when the process drains before the ledger
    /// answers.
    async fn keepers(&self, configured: Configured) -> Option<Vec<Keeper>> {
        let mut failures = 0;
        let mut memories = loop {
            match self.recall(&configured, Timestamp::now()).await {
                Ok(memories) => break memories,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "cannot read up to when schedules were looked after, trying again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Backoff::RECONNECT.draw(failures)) => {}
                () = self.draining.cancelled() => return None,
            }
        };
        let mut keepers = Vec::new();
        for (name, config) in configured {
            if let Some(memory) = memories.remove(&name)
                && config.enabled
            {
                keepers.push(Keeper::new(self, name, config, memory));
            }
        }
        Some(keepers)
    }

    /// Where each schedule goes on from. Those that start anew are remembered at once, so that what they
    /// miss from now on is missed.
    async fn recall(
        &self,
        configured: &Configured,
        now: Timestamp,
    ) -> Result<BTreeMap<ScheduleName, Remembered>, LedgerError> {
        let stored = self.ledger.remembered(Memory::Schedule).await?;
        let mut memories = BTreeMap::new();
        let mut changed = BTreeMap::new();
        for (name, config) in configured {
            let before = stored.get(name.as_str());
            let memory = Remembered::resume(config, before.map(String::as_str), now);
            let json = memory.to_json();
            if before != Some(&json) {
                changed.insert(name.as_str().to_owned(), json);
            }
            self.shown.note(name, &memory, None);
            memories.insert(name.clone(), memory);
        }
        if !changed.is_empty() {
            self.ledger.remember(Memory::Schedule, &changed).await?;
        }
        Ok(memories)
    }
}

#[cfg(test)]
mod tests;
