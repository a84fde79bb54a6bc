//! How long to wait before trying again: capped, exponential, with full jitter.

use std::time::Duration;

/// Delays that double from `base` up to `cap`; the drawn delay is anywhere between zero and that
/// (full jitter, after Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
///
/// With `base` 1 s and `cap` 60 s the upper bounds are 1, 2, 4, 8, 16, 32, 60, 60, … s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
}

impl Backoff {
    /// Reconnecting to a broker or database: quick at first, never a stampede.
    pub const RECONNECT: Self = Self::new(Duration::from_millis(100), Duration::from_secs(5));

    /// Delays from `base` to `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }

    /// The longest delay before try number `failures` + 1, after `failures` failed ones (from 1).
    #[must_use]
    pub fn bound(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }

    /// The delay for a random number between 0 and 1.
    #[must_use]
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        self.bound(failures).mul_f64(random.clamp(0.0, 1.0))
    }

    /// The delay, with a random number drawn here.
    #[must_use]
    pub fn draw(&self, failures: u32) -> Duration {
        self.delay(failures, rand::random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_cap() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        let bounds: Vec<u64> = (1..=8).map(|n| backoff.bound(n).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.bound(u32::MAX).as_secs(), 60);
    }

    #[test]
    fn jitter_covers_the_whole_range() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        assert_eq!(backoff.delay(3, 0.0), Duration::ZERO);
        assert_eq!(backoff.delay(3, 0.5), Duration::from_secs(2));
        assert_eq!(backoff.delay(3, 1.0), Duration::from_secs(4));
    }
}
