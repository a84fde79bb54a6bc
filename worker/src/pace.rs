//! How many deliveries to hold: enough that a free slot need not wait for the broker, and no more, because what
//! waits here is kept from workers that are idle.
//!
//! Between the end of a handler and the delivery that follows lies a *round trip*: its result is stored, perhaps with
//! those of others, its outcome is confirmed, it is acked, the broker sends the next one. What ends meanwhile in the
//! other slots has to be replaced from what is held already, so the look-ahead follows from the round trip and from
//! how long a batch keeps its slot.
//!
//! The queues need not have equal work, and batches that began together end together. So what was reckoned may be too
//! little, and slots *starve*: they are free while a queue may not deliver more. Then the round trip counts as longer
//! than it was measured, for a while.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Twice what the measured round trip asks for: the broker's own share of it, and what varies.
const MARGIN: u32 = 2;

/// Slots that are free for less of the time do not starve: the rest is how long a batch takes to start.
const STARVED: f64 = 0.02;
/// Of what a round trip was raised by, so much is left at the next look: half of it after ten seconds.
const KEPT: f64 = 0.993;

/// Two durations that change slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Measured {
    /// From the end of a handler until its outcome is confirmed.
    round_trip: Duration,
    /// How long a batch keeps its slot.
    busy: Duration,
}

/// Deliveries beyond the slots.
fn look_ahead(slots: u32, measured: Measured, bounds: &RangeInclusive<u32>) -> u32 {
    let bridged = u128::from(slots * MARGIN) * measured.round_trip.as_nanos();
    let needed = bridged.div_ceil(measured.busy.as_nanos().max(1));
    let needed = u32::try_from(needed).unwrap_or(u32::MAX);
    needed.clamp(*bounds.start(), *bounds.end())
}

/// The prefetch of one queue. RabbitMQ bounds each consumer on its own, so slots and look-ahead are divided
/// among the queues that have work: of this pipeline, and of all.
#[must_use]
pub fn prefetch(slots: u32, look_ahead: u32, of_pipeline: u32, of_all: u32) -> u16 {
    let prefetch = slots.div_ceil(of_pipeline.max(1)) + look_ahead.div_ceil(of_all.max(1));
    u16::try_from(prefetch.max(1)).unwrap_or(u16::MAX)
}

/// Measures, and says how many deliveries to hold; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Mutex<Sums>>);

#[derive(Debug)]
struct Sums {
    bounds: RangeInclusive<u32>,
    measured: Option<Measured>,
    round_trips: Mean,
    slots: Mean,
    last_end: Option<Instant>,
    /// The round trip that slots were seen to need.
    raised: Duration,
}

#[derive(Debug, Default)]
struct Mean {
    sum: Duration,
    count: u32,
}

impl Mean {
    fn note(&mut self, span: Duration) {
        self.sum += span;
        self.count += 1;
    }

    fn take(&mut self) -> Option<Duration> {
        let taken = std::mem::take(self);
        (taken.count > 0).then(|| taken.sum / taken.count)
    }
}

impl Pace {
    /// For a look-ahead within these bounds.
    #[must_use]
    pub fn new(bounds: RangeInclusive<u32>) -> Self {
        Self(Arc::new(Mutex::new(Sums {
            bounds,
            measured: None,
            round_trips: Mean::default(),
            slots: Mean::default(),
            last_end: None,
            raised: Duration::ZERO,
        })))
    }

    /// Other bounds from now on.
    pub fn set_bounds(&self, bounds: RangeInclusive<u32>) {
        self.lock().bounds = bounds;
    }

    /// Deliveries to hold beyond so many slots; `running` if any of them is taken. While a queue may not deliver
    /// more, `idle` is the share of time in which slots were free since this was asked last.
    #[must_use]
    pub fn look_ahead(&self, slots: u32, running: bool, idle: Option<f64>) -> u32 {
        let measured = self.measured(running);
        let mut own = self.lock();
        let bounds = own.bounds.clone();
        let Some(mut measured) = measured else {
            return *bounds.start();
        };
        own.raised = own.raised.mul_f64(KEPT);
        measured.round_trip = measured.round_trip.max(own.raised);
        let enough = look_ahead(slots, measured, &bounds);
        if idle.is_none_or(|idle| idle < STARVED) {
            return enough;
        }
        // Less than this is not worth a new consumer (`consume::queues`).
        let more = (enough + (slots + enough) / 3 + 1).clamp(*bounds.start(), *bounds.end());
        own.raised = measured.busy * more / (slots.max(1) * MARGIN);
        more
    }

    /// A handler's outcome was confirmed so long after its end.
    pub fn note_round_trip(&self, span: Duration) {
        self.lock().round_trips.note(span);
    }

    /// A batch has kept its slot for this time, until now.
    pub fn note_slot(&self, span: Duration, now: Instant) {
        let mut own = self.lock();
        own.slots.note(span);
        own.last_end = Some(now);
    }

    /// What was measured, the newest counting half. `running`: slots are taken, so if nothing has ended for a
    /// while, batches take at least that long. `None` before the first outcome.
    fn measured(&self, running: bool) -> Option<Measured> {
        let mut own = self.lock();
        let (round_trip, busy) = (own.round_trips.take(), own.slots.take());
        let mix =
            |before: Duration, now: Option<Duration>| now.map_or(before, |now| (before + now) / 2);
        own.measured = match (own.measured, round_trip, busy) {
            (Some(before), round_trip, busy) => Some(Measured {
                round_trip: mix(before.round_trip, round_trip),
                busy: mix(before.busy, busy),
            }),
            (None, Some(round_trip), Some(busy)) => Some(Measured { round_trip, busy }),
            (None, _, _) => None,
        };
        let silence = own.last_end.filter(|_| running).map(|end| end.elapsed());
        own.measured.map(|measured| Measured {
            busy: measured.busy.max(silence.unwrap_or_default()),
            ..measured
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BOUNDS: RangeInclusive<u32> = 0..=64;

    fn needed(round_trip: Duration, busy: Duration) -> u32 {
        look_ahead(16, Measured { round_trip, busy }, &BOUNDS)
    }

    #[test]
    fn short_batches_are_looked_ahead_for_and_long_ones_are_not() {
        assert_eq!(needed(5 * MS, 60_000 * MS), 1);
        assert_eq!(needed(5 * MS, 100 * MS), 2);
        assert_eq!(needed(5 * MS, 5 * MS), 32);
        assert_eq!(needed(5 * MS, MS / 100), 64, "never more than allowed");
        assert_eq!(needed(Duration::ZERO, Duration::ZERO), 0);
        let measured = Measured {
            round_trip: MS,
            busy: 1000 * MS,
        };
        assert_eq!(look_ahead(16, measured, &(7..=7)), 7, "nor fewer");
    }

    #[test]
    fn what_is_held_is_divided_among_queues_with_work() {
        assert_eq!(prefetch(16, 0, 1, 1), 16);
        assert_eq!(prefetch(16, 64, 2, 4), 8 + 16);
        assert_eq!(prefetch(1, 0, 2, 2), 1);
        assert_eq!(prefetch(3, 1, 2, 2), 2 + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_measured_changes_slowly_and_silence_is_long() {
        let pace = Pace::new(BOUNDS);
        assert_eq!(pace.measured(true), None);
        let note_slot = |span| pace.note_slot(span, Instant::now());
        note_slot(10 * MS);
        note_slot(20 * MS);
        pace.note_round_trip(4 * MS);
        let busy = |running| pace.measured(running).unwrap().busy;
        assert_eq!(busy(true), 15 * MS);
        note_slot(45 * MS);
        assert_eq!(busy(true), 30 * MS);
        tokio::time::advance(7_000 * MS).await;
        assert_eq!(busy(true), 7_000 * MS, "nothing has ended since");
        assert_eq!(busy(false), 30 * MS, "nothing runs");
        assert_eq!(pace.look_ahead(16, false, None), 5, "32 x 4 / 30");
    }

    #[tokio::test]
    async fn slots_that_starve_are_looked_ahead_for_until_it_is_forgotten() {
        let pace = Pace::new(BOUNDS);
        let look = |idle| pace.look_ahead(16, true, idle);
        assert_eq!(look(Some(0.5)), 0, "nothing is known yet");
        pace.note_slot(100 * MS, Instant::now());
        pace.note_round_trip(5 * MS);
        assert_eq!(look(Some(0.01)), 2);
        assert_eq!(look(None), 2, "no queue is full");
        let more = look(Some(0.05));
        assert!(is_about(more, 9), "2 + 18 / 3 + 1: {more}");
        assert!(is_about(look(None), 9));
        assert!(is_about(look(Some(0.05)), 18));
        let most = (0..10).map(|_| look(Some(0.05))).max();
        assert_eq!(most, Some(64), "never more than allowed");
        let forgotten = (0..1_000).map(|_| look(None)).min();
        assert_eq!(forgotten, Some(2));
    }

    fn is_about(one: u32, other: u32) -> bool {
        one.abs_diff(other) <= 1
    }
}
