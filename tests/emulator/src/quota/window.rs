//! One sliding window: how much was used in the last so many seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Uses closer together than this part of the window are kept as one, which bounds memory. They expire with
/// the first of them, so the window is never stricter than it says.
const GRAIN: u32 = 60_000;

/// Use of one quota over the last `length`.
#[derive(Debug)]
pub(super) struct Window {
    length: Duration,
    used: u64,
    uses: VecDeque<(Instant, u64)>,
}

impl Window {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            used: 0,
            uses: VecDeque::new(),
        }
    }

    /// Whether `cost` more fits under `limit`; 0 is no limit.
    pub(super) fn has_room(&mut self, cost: u64, limit: u64, now: Instant) -> bool {
        self.forget(now);
        limit == 0 || self.used + cost <= limit
    }

    pub(super) fn charge(&mut self, cost: u64, now: Instant) {
        self.used += cost;
        match self.uses.back_mut() {
            Some((at, together)) if now.duration_since(*at) < self.length / GRAIN => {
                *together += cost;
            }
            _ => self.uses.push_back((now, cost)),
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, cost)) = self.uses.front()
            && now.duration_since(*at) >= self.length
        {
            self.used -= cost;
            self.uses.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_slides() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut window = Window::new(Duration::from_secs(1));
        for ms in [0, 500] {
            assert!(window.has_room(1, 2, at(ms)));
            window.charge(1, at(ms));
        }
        assert!(!window.has_room(1, 2, at(999)));
        assert!(window.has_room(1, 2, at(1000)));
        assert!(!window.has_room(2, 2, at(1000)));
        assert!(window.has_room(2, 2, at(1500)));
    }

    #[test]
    fn zero_is_no_limit_and_memory_stays_bounded() {
        let start = Instant::now();
        let mut window = Window::new(Duration::from_secs(59));
        for _ in 0..100_000 {
            assert!(window.has_room(1, 0, start));
            window.charge(1, start);
        }
        assert_eq!(window.uses.len(), 1);
    }
}
