//! The live workers, as their presence messages describe them, and in whose hands batches were. Nothing here
//! is stored: a coordinator that starts knows them again within one presence interval.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::id::BatchId;
use shared::name::{Instance, PipelineName};
use shared::presence::{GONE_AFTER, Presence, Progress, RETURNED_FOR};
use utoipa::ToSchema;

/// The live workers.
#[derive(Debug, Default)]
pub struct Fleet {
    workers: BTreeMap<Instance, Seen>,
    /// Since when this coordinator has heard everybody who speaks; `None` while it is deaf.
    listening: Option<Instant>,
    /// When each batch was last heard to be in somebody's hands, for as long as it matters.
    held: HashMap<BatchId, Instant>,
    /// What was given back alive, until somebody else has it.
    returned: HashMap<BatchId, Instant>,
}

#[derive(Debug)]
struct Seen {
    presence: Presence,
    at: Instant,
    skew_ms: Option<i64>,
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
    /// How many lanes it believes there are: other than the coordinator's, it consumes the wrong queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<u16>,
    /// Its resident memory in bytes, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// How far its clock is ahead of the coordinator's, in milliseconds; the message's way counts as behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_ms: Option<i64>,
}

/// Who has a batch, and what comes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InHand {
    /// The worker that has it.
    #[schema(value_type = String)]
    pub worker: Instance,
    /// How much is done, in the handler's own units, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    /// Of how much, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

impl Fleet {
    /// Whoever speaks from now on is heard. What was said before, while nobody listened, was not.
    pub fn listens(&mut self, now: Instant) {
        self.listening = Some(now);
    }

    /// Workers could not speak until now: nothing follows from their silence.
    pub fn excuse_silence(&mut self, now: Instant) {
        if self.listening.is_some() {
            self.listening = Some(now);
        }
    }

    /// Nobody is heard any more.
    pub fn is_deaf(&mut self) {
        self.listening = None;
    }

    /// Whether workers can be heard just now.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.listening.is_some()
    }

    /// A worker spoke. Whether it is new here.
    pub fn hear(&mut self, presence: Presence, now: Instant, clock: Timestamp) -> bool {
        for batch in &presence.returned {
            self.returned.insert(*batch, now);
        }
        for batch in &presence.holding {
            self.held.insert(*batch, now);
        }
        if presence.leaving {
            self.workers.remove(&presence.worker);
            return false;
        }
        let skew_ms = i64::try_from(presence.clock_ms)
            .ok()
            .filter(|ms| *ms > 0)
            .map(|ms| ms - clock.as_millisecond());
        let seen = Seen {
            presence,
            at: now,
            skew_ms,
        };
        let name = seen.presence.worker.clone();
        self.workers.insert(name, seen).is_none()
    }

    /// Forgets and returns the workers that fell silent without saying goodbye, and forgets batches that
    /// nobody has had for `remember`.
    pub fn forget_silent(&mut self, now: Instant, remember: Duration) -> Vec<Instance> {
        let young = |at: &mut Instant, age: Duration| now.duration_since(*at) <= age;
        self.held.retain(|_, at| young(at, remember));
        self.returned.retain(|_, at| young(at, RETURNED_FOR));
        // Who could not be heard has not fallen silent.
        let Some(listening) = self.listening else {
            return vec![];
        };
        let silent = |seen: &Seen| now.duration_since(seen.at.max(listening)) > GONE_AFTER;
        self.workers
            .extract_if(.., |_, seen| silent(seen))
            .map(|(name, _)| name)
            .collect()
    }

    /// Slots that take new work, by pipeline. A worker's slots count for each pipeline that it serves.
    #[must_use]
    pub fn slots(&self) -> HashMap<PipelineName, u32> {
        let mut slots = HashMap::new();
        for Seen { presence, .. } in self.workers.values().filter(|seen| !seen.presence.draining) {
            for pipeline in &presence.pipelines {
                let slots: &mut u32 = slots.entry(pipeline.clone()).or_default();
                *slots = slots.saturating_add(presence.slots);
            }
        }
        slots
    }

    /// How many live workers serve a pipeline, draining ones included: each may have one consumer of its queue.
    #[must_use]
    pub fn serving(&self, pipeline: &PipelineName) -> u32 {
        let serves = |seen: &&Seen| seen.presence.pipelines.contains(pipeline);
        u32::try_from(self.workers.values().filter(serves).count()).unwrap_or(u32::MAX)
    }

    /// For how long nobody has been heard to have this batch; `None` when that cannot be said, because this
    /// coordinator hears nobody just now.
    #[must_use]
    pub fn unheard(&self, batch: BatchId, now: Instant) -> Option<Duration> {
        let listening = self.listening?;
        let last = self.held.get(&batch).copied().unwrap_or(listening);
        Some(now.saturating_duration_since(last.max(listening)))
    }

    /// Whether whoever had this batch last gave it back alive. The answer is good for one delivery.
    pub fn take_returned(&mut self, batch: BatchId) -> bool {
        self.returned.remove(&batch).is_some()
    }

    /// Who has said last that this batch is in its hands.
    #[must_use]
    pub fn in_hand(&self, batch: BatchId) -> Option<InHand> {
        let has = |seen: &&Seen| seen.presence.holding.contains(&batch);
        let holders = self.workers.values().filter(has);
        let Seen { presence, .. } = holders.max_by_key(|seen| seen.at)?;
        let progress = presence.progress.get(&batch).copied();
        Some(InHand {
            worker: presence.worker.clone(),
            done: progress.map(|Progress { done, .. }| done),
            total: progress.and_then(|Progress { total, .. }| total),
        })
    }

    /// When this worker last spoke; `None` when it is gone.
    #[must_use]
    pub fn last_words(&self, worker: &Instance) -> Option<Instant> {
        self.workers.get(worker).map(|seen| seen.at)
    }

    /// All live workers, by name.
    #[must_use]
    pub fn workers(&self, now: Instant) -> Vec<Worker> {
        let show = |seen: &Seen| {
            let presence = &seen.presence;
            Worker {
                worker: presence.worker.clone(),
                version: presence.version.clone(),
                pipelines: presence.pipelines.clone(),
                slots: presence.slots,
                holding: presence.holding.clone(),
                draining: presence.draining,
                seen_ms_ago: milliseconds(now.duration_since(seen.at)),
                lanes: (presence.lanes > 0).then_some(presence.lanes),
                memory_bytes: (presence.memory_bytes > 0).then_some(presence.memory_bytes),
                clock_skew_ms: seen.skew_ms,
            }
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

    const CLOCK: Timestamp = Timestamp::constant(1_700_000_000, 0);
    const REMEMBER: Duration = Duration::from_secs(35);

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
            progress: HashMap::new(),
            draining: false,
            leaving: false,
            returned: vec![],
            lanes: 2,
            memory_bytes: 0,
            clock_ms: 0,
        }
    }

    fn listening(now: Instant) -> Fleet {
        let mut fleet = Fleet::default();
        fleet.listens(now);
        fleet
    }

    #[test]
    fn slots_add_up_over_workers_that_take_work() {
        let now = Instant::now();
        let mut fleet = listening(now);
        fleet.hear(presence("w1", 4), now, CLOCK);
        fleet.hear(presence("w2", 8), now, CLOCK);
        let draining = Presence {
            draining: true,
            ..presence("w3", 100)
        };
        fleet.hear(draining, now, CLOCK);
        let pipeline = PipelineName::new("a").unwrap();
        assert_eq!(fleet.slots()[&pipeline], 12);
        assert_eq!(fleet.serving(&pipeline), 3);
    }

    #[test]
    fn who_leaves_or_falls_silent_is_gone() {
        let now = Instant::now();
        let mut fleet = listening(now);
        fleet.hear(presence("w1", 4), now, CLOCK);
        fleet.hear(presence("w2", 4), now + GONE_AFTER, CLOCK);
        fleet.hear(presence("w3", 4), now + GONE_AFTER, CLOCK);
        let leaving = Presence {
            leaving: true,
            ..presence("w3", 4)
        };
        fleet.hear(leaving, now + GONE_AFTER, CLOCK);
        let late = now + GONE_AFTER + Duration::from_secs(1);
        assert_eq!(
            fleet.forget_silent(late, REMEMBER),
            [Instance::from("w1".to_owned())]
        );
        let left: Vec<_> = fleet
            .workers(late)
            .into_iter()
            .map(|w| w.worker.to_string())
            .collect();
        assert_eq!(left, ["w2"]);
    }

    #[test]
    fn who_could_not_be_heard_has_not_fallen_silent() {
        let now = Instant::now();
        let mut fleet = listening(now);
        fleet.hear(presence("w1", 4), now, CLOCK);
        fleet.is_deaf();
        let later = now + Duration::from_mins(1);
        assert!(fleet.forget_silent(later, REMEMBER).is_empty());
        fleet.listens(later);
        assert!(fleet.forget_silent(later + GONE_AFTER, REMEMBER).is_empty());
        let silent = fleet.forget_silent(later + GONE_AFTER * 2, REMEMBER);
        assert_eq!(silent.len(), 1);
    }

    #[test]
    fn a_batch_is_unheard_of_since_somebody_last_had_it() {
        let now = Instant::now();
        let (held, other) = (BatchId::generate(), BatchId::generate());
        let mut fleet = Fleet::default();
        assert_eq!(fleet.unheard(held, now), None, "nobody can be heard");
        fleet.listens(now);
        let holding = Presence {
            holding: vec![held],
            ..presence("w1", 4)
        };
        let ten = Duration::from_secs(10);
        fleet.hear(holding, now + ten, CLOCK);
        assert_eq!(fleet.unheard(held, now + ten * 2), Some(ten));
        assert_eq!(fleet.unheard(other, now + ten * 2), Some(ten * 2));
        fleet.listens(now + ten * 3);
        assert_eq!(fleet.unheard(held, now + ten * 4), Some(ten));
    }

    #[test]
    fn it_is_known_who_has_a_batch_and_how_far_it_has_come() {
        let now = Instant::now();
        let batch = BatchId::generate();
        let mut fleet = listening(now);
        assert_eq!(fleet.in_hand(batch), None);
        let has_it = |name: &str, progress: Option<Progress>| Presence {
            holding: vec![BatchId::generate(), batch],
            progress: progress
                .map(|progress| (batch, progress))
                .into_iter()
                .collect(),
            ..presence(name, 4)
        };
        fleet.hear(has_it("w2", None), now, CLOCK);
        let in_hand = fleet.in_hand(batch).unwrap();
        assert_eq!((in_hand.worker.as_str(), in_hand.done), ("w2", None));
        let progress = Progress {
            done: 3,
            total: Some(7),
        };
        let later = now + Duration::from_secs(1);
        fleet.hear(has_it("w1", Some(progress)), later, CLOCK);
        let in_hand = fleet.in_hand(batch).unwrap();
        let told = (in_hand.worker.as_str(), in_hand.done, in_hand.total);
        assert_eq!(told, ("w1", Some(3), Some(7)), "who spoke last");
    }

    #[test]
    fn what_was_given_back_is_innocent_once() {
        let now = Instant::now();
        let batch = BatchId::generate();
        let mut fleet = listening(now);
        let returning = Presence {
            returned: vec![batch],
            leaving: true,
            ..presence("w1", 4)
        };
        fleet.hear(returning.clone(), now, CLOCK);
        assert!(fleet.take_returned(batch));
        assert!(!fleet.take_returned(batch));
        fleet.hear(returning, now, CLOCK);
        fleet.forget_silent(now + RETURNED_FOR * 2, REMEMBER);
        assert!(!fleet.take_returned(batch), "that is long ago");
    }

    #[test]
    fn a_clock_that_runs_ahead_is_seen() {
        let now = Instant::now();
        let mut fleet = listening(now);
        let ahead = Presence {
            clock_ms: u64::try_from(CLOCK.as_millisecond()).unwrap() + 90_000,
            ..presence("w1", 1)
        };
        fleet.hear(ahead, now, CLOCK);
        fleet.hear(presence("w2", 1), now, CLOCK);
        let workers = fleet.workers(now);
        assert_eq!(workers[0].clock_skew_ms, Some(90_000));
        assert_eq!(workers[1].clock_skew_ms, None, "it does not say");
    }
}
