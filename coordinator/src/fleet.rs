//! The live workers, as their presence messages describe them. Nothing here is stored: a coordinator that
//! starts knows them again within one presence interval.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shared::id::BatchId;
use shared::name::{Instance, PipelineName};
use shared::presence::{GONE_AFTER, Presence};
use utoipa::ToSchema;

/// The live workers.
#[derive(Debug, Default)]
pub struct Fleet {
    workers: BTreeMap<Instance, Seen>,
}

#[derive(Debug)]
struct Seen {
    presence: Presence,
    at: Instant,
}

/// One live worker, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// Its name.
    #[schema(value_type = String)]
    pub worker: Instance,
    /// Its program version.
    pub version: String,
    /// The pipelines that it serves.
    #[schema(value_type = Vec<String>)]
    pub pipelines: Vec<PipelineName>,
    /// How many batches it runs at once.
    pub slots: u32,
    /// What it holds.
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub holding: Vec<BatchId>,
    /// Whether it finishes what it holds and takes nothing new.
    pub draining: bool,
    /// Milliseconds since it last spoke.
    pub seen_ms_ago: u64,
}

impl Fleet {
    /// A worker spoke.
    pub fn hear(&mut self, presence: Presence, now: Instant) {
        if presence.leaving {
            self.workers.remove(&presence.worker);
        } else {
            self.workers
                .insert(presence.worker.clone(), Seen { presence, at: now });
        }
    }

    /// Forgets and returns the workers that fell silent without saying goodbye.
    pub fn forget_silent(&mut self, now: Instant) -> Vec<Instance> {
        let silent = |seen: &Seen| now.duration_since(seen.at) > GONE_AFTER;
        let gone: Vec<_> = self
            .workers
            .extract_if(.., |_, seen| silent(seen))
            .map(|(name, _)| name)
            .collect();
        gone
    }

    /// Slots that take new work, by pipeline. A worker's slots count for each pipeline that it serves.
    #[must_use]
    pub fn slots(&self) -> HashMap<PipelineName, u32> {
        let mut slots = HashMap::new();
        for Seen { presence, .. } in self.workers.values().filter(|seen| !seen.presence.draining) {
            for pipeline in &presence.pipelines {
                *slots.entry(pipeline.clone()).or_default() += presence.slots;
            }
        }
        slots
    }

    /// All live workers, by name.
    #[must_use]
    pub fn workers(&self, now: Instant) -> Vec<Worker> {
        let show = |Seen { presence, at }: &Seen| Worker {
            worker: presence.worker.clone(),
            version: presence.version.clone(),
            pipelines: presence.pipelines.clone(),
            slots: presence.slots,
            holding: presence.holding.clone(),
            draining: presence.draining,
            seen_ms_ago: milliseconds(now.duration_since(*at)),
        };
        self.workers.values().map(show).collect()
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(name: &str, slots: u32) -> Presence {
        Presence {
            worker: Instance::from(name.to_owned()),
            version: "1".into(),
            pipelines: vec![
                PipelineName::new("a").unwrap(),
                PipelineName::new("b").unwrap(),
            ],
            slots,
            holding: vec![],
            draining: false,
            leaving: false,
        }
    }

    #[test]
    fn slots_add_up_over_workers_that_take_work() {
        let now = Instant::now();
        let mut fleet = Fleet::default();
        fleet.hear(presence("w1", 4), now);
        fleet.hear(presence("w2", 8), now);
        fleet.hear(
            Presence {
                draining: true,
                ..presence("w3", 100)
            },
            now,
        );
        assert_eq!(fleet.slots()[&PipelineName::new("a").unwrap()], 12);
    }

    #[test]
    fn who_leaves_or_falls_silent_is_gone() {
        let now = Instant::now();
        let mut fleet = Fleet::default();
        fleet.hear(presence("w1", 4), now);
        fleet.hear(presence("w2", 4), now + GONE_AFTER);
        fleet.hear(presence("w3", 4), now + GONE_AFTER);
        fleet.hear(
            Presence {
                leaving: true,
                ..presence("w3", 4)
            },
            now + GONE_AFTER,
        );
        let late = now + GONE_AFTER + Duration::from_secs(1);
        assert_eq!(fleet.forget_silent(late), [Instance::from("w1".to_owned())]);
        let left: Vec<_> = fleet
            .workers(late)
            .into_iter()
            .map(|w| w.worker.to_string())
            .collect();
        assert_eq!(left, ["w2"]);
    }
}
