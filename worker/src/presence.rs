//! Tells the coordinators every two seconds that this worker lives, and what it holds.

use std::time::Duration;

use jiff::Timestamp;
use lapin::BasicProperties;
use shared::broker::{BrokerError, Message, Publisher, PublishingPool, TRANSIENT, Verdict};
use shared::name::{Instance, PipelineName};
use shared::presence::{INTERVAL, PRESENCE_TYPE, Presence};
use shared::topology::PRESENCE;
use tokio_util::sync::CancellationToken;

use crate::holding::Holding;
use crate::slots::Slots;

/// How long the goodbye may take, on a connection that may be dead without anybody knowing yet. Not heard, it
/// is found out when the worker is silent.
const GOODBYE: Duration = Duration::from_secs(2);

/// The voice of this worker.
pub struct PresenceStage {
    /// Its name.
    pub worker: Instance,
    /// What it serves.
    pub pipelines: Vec<PipelineName>,
    /// How many batches it runs at once.
    pub slots: Slots,
    /// How many lanes there are.
    pub lanes: u16,
    /// What it holds, and gives back.
    pub holding: Holding,
    /// Where publishers come from.
    pub publishing: PublishingPool,
    /// Whether it takes new work.
    pub draining: CancellationToken,
    /// When everything else has ended: says goodbye.
    pub leaving: CancellationToken,
}

impl PresenceStage {
    /// Speaks until `leaving`, then says goodbye.
    pub async fn run(self) -> Result<(), std::convert::Infallible> {
        let mut publisher = self.publishing.publisher();
        let mut tick = tokio::time::interval(INTERVAL);
        let mut told_draining = false;
        loop {
            let draining = self.draining.is_cancelled();
            let leaving = self.leaving.is_cancelled();
            tokio::select! {
                spoken = self.speak(&mut publisher, draining, leaving) => if let Err(error) = spoken {
                    tracing::debug!(%error, "could not tell that this worker is here");
                },
                () = self.out_of_time() => return Ok(()),
            }
            if leaving {
                return Ok(());
            }
            told_draining |= draining;
            tokio::select! {
                _ = tick.tick() => {}
                () = self.holding.news() => {}
                () = self.draining.cancelled(), if !told_draining => {}
                () = self.leaving.cancelled() => {}
            }
        }
    }

    async fn out_of_time(&self) {
        self.leaving.cancelled().await;
        tokio::time::sleep(GOODBYE).await;
    }

    async fn speak(
        &self,
        publisher: &mut Publisher,
        draining: bool,
        leaving: bool,
    ) -> Result<(), BrokerError> {
        let returns = self.holding.returns();
        let presence = Presence {
            worker: self.worker.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pipelines: self.pipelines.clone(),
            slots: self.slots.count(),
            holding: self.holding.list(),
            progress: self.holding.progress(),
            draining,
            leaving,
            returned: returns.batches.clone(),
            lanes: self.lanes,
            memory_bytes: resident_bytes().unwrap_or_default(),
            clock_ms: u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default(),
        };
        let message = Message {
            exchange: PRESENCE,
            routing_key: String::new(),
            properties: BasicProperties::default()
                .with_delivery_mode(TRANSIENT)
                .with_content_type("application/json".into())
                .with_type(PRESENCE_TYPE.into())
                .with_message_id(self.worker.as_str().into())
                .with_app_id("tidegate-worker".into()),
            body: serde_json::to_vec(&presence).expect("presence is plain data"),
        };
        // Nobody may be listening: a coordinator that starts hears the next one.
        if publisher.publish(&[message]).await? == [Verdict::Confirmed] {
            self.holding.said(&returns);
        }
        Ok(())
    }
}

/// This process's resident memory, where Linux says.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_takes_some_memory() {
        let bytes = resident_bytes().unwrap();
        assert!((1 << 20..1 << 34).contains(&bytes), "{bytes}");
    }
}
