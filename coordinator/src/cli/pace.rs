//! How fast a run goes, from what was seen of it lately.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back "lately" goes: long enough to be calm, short enough to notice a change.
const LATELY: Duration = Duration::from_secs(10);

/// Remembers how many batches were finished when.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// So many are finished now.
    pub(crate) fn see(&mut self, now: Instant, finished: u64) {
        self.seen.push_back((now, finished));
        // One sight from before `LATELY` stays, as the start of the measured stretch.
        while self
            .seen
            .get(1)
            .is_some_and(|(at, _)| now.duration_since(*at) >= LATELY)
        {
            self.seen.pop_front();
        }
    }

    /// Batches per second; `None` until there is a stretch to measure.
    pub(crate) fn rate(&self) -> Option<f64> {
        let ((start, before), (end, after)) = (self.seen.front()?, self.seen.back()?);
        let seconds = end.duration_since(*start).as_secs_f64();
        // Counts of batches are far below 2^52, where f64 stops being exact.
        #[expect(clippy::cast_precision_loss)]
        let finished = after.saturating_sub(*before) as f64;
        (seconds > 0.0).then(|| finished / seconds)
    }

    /// How long `remaining` batches will take at this rate; `None` when nothing moves.
    pub(crate) fn time_for(&self, remaining: u64) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss)]
        let seconds = remaining as f64 / self.rate().filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.rate(), None);
        pace.see(start, 1_000);
        assert_eq!(pace.rate(), None);
        // A slow minute, then a fast one.
        for second in 1..=60 {
            pace.see(start + Duration::from_secs(second), 1_000 + second);
        }
        assert_eq!(pace.rate(), Some(1.0));
        for second in 61..=120 {
            pace.see(
                start + Duration::from_secs(second),
                1_060 + (second - 60) * 100,
            );
        }
        assert_eq!(pace.rate(), Some(100.0));
        assert_eq!(pace.time_for(500), Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_stands_still_has_no_end() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.see(start, 7);
        pace.see(start + Duration::from_secs(1), 7);
        assert_eq!(pace.rate(), Some(0.0));
        assert_eq!(pace.time_for(1), None);
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut pace = Pace::default();
        for tick in 0..10_000 {
            pace.see(start + Duration::from_millis(250 * tick), tick);
        }
        assert!(pace.seen.len() <= 42);
    }
}
