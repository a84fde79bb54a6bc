//! The places of one line: when the next call of a limit may start. A generic cell rate algorithm (ITU-T
//! I.371) that also knows the places given away ahead of time, so that a call which has to wait for another
//! limit leaves a gap that others can use.
//!
//! Every time here is a span since some fixed moment.

use std::collections::VecDeque;
use std::time::Duration;

/// How fast a line moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// From one call to the next.
    pub(super) interval: Duration,
    /// How many calls may start together after a pause.
    pub(super) burst: u32,
}

/// Who is where.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    /// When a call would be exactly on time, after all places that have passed.
    on_time: Duration,
    /// Nobody new starts before.
    held_until: Duration,
    /// Places that have not passed, in order.
    places: VecDeque<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    at: Duration,
    /// For how many calls.
    n: u32,
}

impl Pace {
    /// What `n` calls use up.
    fn cost(self, n: u32) -> Duration {
        self.interval.saturating_mul(n)
    }

    /// The first moment for `n` calls, when a single one would be on time at `on_time`. More than a burst
    /// have to wait until as many would have been on time one by one.
    fn first(self, on_time: Duration, n: u32) -> Duration {
        on_time
            .saturating_add(self.cost(n))
            .saturating_sub(self.cost(self.burst))
    }

    /// When a single call would be on time, at the latest, so that `n` calls can start at `at`.
    fn latest(self, at: Duration, n: u32) -> Duration {
        at.saturating_add(self.cost(self.burst))
            .saturating_sub(self.cost(n))
    }

    /// Since when `n` calls that start at `at` use up what they cost.
    fn used_from(self, at: Duration, n: u32) -> Duration {
        at.saturating_sub(self.cost(n.saturating_sub(self.burst)))
    }

    /// When the next call is on time, after `n` calls at `at`.
    fn after(self, on_time: Duration, at: Duration, n: u32) -> Duration {
        on_time
            .max(self.used_from(at, n))
            .saturating_add(self.cost(n))
    }
}

impl Line {
    /// A line whose next call is on time at this moment.
    pub(super) fn resumed(on_time: Duration) -> Self {
        Self {
            on_time,
            ..Self::default()
        }
    }

    /// The earliest moment, not before `from`, at which `n` calls may start without making anybody who has a
    /// place already too early.
    pub(super) fn earliest(&self, from: Duration, n: u32, pace: Pace) -> Duration {
        let from = from.max(self.held_until);
        let gaps = self.gaps(pace);
        let mut behind = Duration::ZERO;
        for (index, gap) in gaps.iter().enumerate() {
            let at = from.max(behind).max(pace.first(gap.on_time, n));
            let delay = pace.after(gap.on_time, at, n).saturating_sub(gap.on_time);
            let next = self.places.get(index).map(|place| place.at);
            if next.is_none_or(|next| at <= next && delay <= gap.room) {
                return at;
            }
            behind = next.unwrap_or_default();
        }
        unreachable!("behind everybody there is always a place")
    }

    /// Takes a place that [`Self::earliest`] gave, or a later one that it agrees with.
    pub(super) fn take(&mut self, at: Duration, n: u32) {
        let index = self.places.partition_point(|place| place.at <= at);
        self.places.insert(index, Place { at, n });
    }

    /// Nobody who has no place yet starts before.
    pub(super) fn hold(&mut self, until: Duration) {
        self.held_until = self.held_until.max(until);
    }

    /// Until when nobody new starts.
    pub(super) fn held_until(&self) -> Duration {
        self.held_until
    }

    /// Forgets the places that have passed.
    pub(super) fn pass(&mut self, now: Duration, pace: Pace) {
        while let Some(place) = self.places.front().filter(|place| place.at <= now) {
            self.on_time = pace.after(self.on_time, place.at, place.n);
            self.places.pop_front();
        }
    }

    /// When a call would be on time behind everybody.
    pub(super) fn end(&self, pace: Pace) -> Duration {
        let after = |on_time, place: &Place| pace.after(on_time, place.at, place.n);
        self.places.iter().fold(self.on_time, after)
    }

    /// How many places have not passed.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// What is before each place, and behind the last.
    fn gaps(&self, pace: Pace) -> Vec<Gap> {
        let mut gaps = Vec::with_capacity(self.places.len() + 1);
        let mut on_time = self.on_time;
        for place in &self.places {
            let room = Duration::MAX;
            gaps.push(Gap { on_time, room });
            on_time = pace.after(on_time, place.at, place.n);
        }
        let mut room = Duration::MAX;
        gaps.push(Gap { on_time, room });
        for (gap, place) in gaps.iter_mut().zip(&self.places).rev() {
            let idle = pace
                .used_from(place.at, place.n)
                .saturating_sub(gap.on_time);
            let late = pace.latest(place.at, place.n).saturating_sub(gap.on_time);
            room = late.min(idle.saturating_add(room));
            gap.room = room;
        }
        gaps
    }
}

/// The space between two places.
struct Gap {
    /// When a call in here would be on time.
    on_time: Duration,
    /// How much later that may become without making anybody behind too early.
    room: Duration,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn pace(burst: u32) -> Pace {
        Pace { interval: S, burst }
    }

    fn take(line: &mut Line, from: Duration, n: u32, pace: Pace) -> Duration {
        let at = line.earliest(from, n, pace);
        line.take(at, n);
        at
    }

    #[test]
    fn calls_keep_their_distance() {
        let mut line = Line::default();
        let places = [0; 3].map(|_| take(&mut line, 100 * S, 1, pace(1)));
        assert_eq!(places, [100 * S, 101 * S, 102 * S]);
        line.pass(101 * S, pace(1));
        assert_eq!(line.len(), 1);
        assert_eq!(take(&mut line, 101 * S, 1, pace(1)), 103 * S);
    }

    #[test]
    fn a_burst_may_follow_a_pause_and_several_calls_at_once_wait_for_as_many() {
        let mut line = Line::default();
        let places = [0; 4].map(|_| take(&mut line, 100 * S, 1, pace(3)));
        assert_eq!(places, [100 * S, 100 * S, 100 * S, 101 * S]);
        let mut line = Line::default();
        assert_eq!(take(&mut line, 100 * S, 3, pace(3)), 100 * S);
        assert_eq!(take(&mut line, 100 * S, 2, pace(3)), 102 * S);
        assert_eq!(take(&mut line, 100 * S, 1, pace(3)), 103 * S);
    }

    #[test]
    fn a_gap_before_a_late_place_is_used() {
        let mut line = Line::default();
        line.take(110 * S, 1);
        let places: Vec<u64> = (0..12)
            .map(|_| take(&mut line, 100 * S, 1, pace(1)).as_secs())
            .collect();
        assert_eq!(
            places,
            [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 111, 112]
        );
    }

    #[test]
    fn a_gap_that_is_too_narrow_stays_empty() {
        let mut line = Line::default();
        line.take(100 * S, 1);
        line.take(100 * S + 3 * S / 2, 1);
        assert_eq!(line.earliest(100 * S, 1, pace(1)), 102 * S + S / 2);
    }

    #[test]
    fn a_hold_moves_only_those_who_have_no_place() {
        let mut line = Line::default();
        take(&mut line, 100 * S, 1, pace(1));
        take(&mut line, 100 * S, 1, pace(1));
        line.hold(130 * S);
        assert_eq!(line.earliest(100 * S, 1, pace(1)), 130 * S);
        assert_eq!(line.end(pace(1)), 102 * S);
    }

    proptest! {
        /// Whatever the order in which places are asked for, no span of time sees more calls than the rate
        /// and the burst allow.
        #[test]
        fn no_span_sees_too_many(
            asked in proptest::collection::vec((0_u64..60_000, 1_u32..4), 1..80),
            burst in 1_u32..6,
        ) {
            let pace = pace(burst);
            let mut line = Line::default();
            let start = 1_000 * S;
            let mut taken: Vec<(Duration, u32)> = Vec::new();
            for (from, n) in asked {
                let from = start + Duration::from_millis(from);
                let at = line.earliest(from, n, pace);
                prop_assert!(at >= from);
                prop_assert_eq!(line.earliest(at, n, pace), at, "a place that was offered can be taken");
                line.take(at, n);
                taken.push((at, n));
            }
            taken.sort();
            for (index, (begin, lump)) in taken.iter().enumerate() {
                let mut calls = 0;
                for (end, n) in &taken[index..] {
                    calls += n;
                    let seconds = end.abs_diff(*begin).as_secs_f64();
                    let allowed = seconds + f64::from(burst.max(*lump));
                    prop_assert!(f64::from(calls) <= allowed + 1e-6, "{calls} calls in {seconds} s");
                }
            }
        }
    }
}
