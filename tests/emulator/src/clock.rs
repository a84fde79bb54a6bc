//! The virtual clock: what time it is for the content. Quotas, tokens and latency use the real clock.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

/// The zone of all dates of the API.
const PACIFIC: &str = "America/Los_Angeles";

/// A clock that stands still unless told to run, and moves when told to.
#[derive(Debug)]
pub(crate) struct VirtualClock {
    setting: Mutex<Setting>,
    pacific: TimeZone,
}

#[derive(Debug, Clone, Copy)]
struct Setting {
    /// The virtual time when it was last set.
    time: Timestamp,
    /// When that was; absent while the clock stands still.
    running_since: Option<Instant>,
}

impl Setting {
    fn read(self) -> Timestamp {
        let passed = self.running_since.map_or(SignedDuration::ZERO, |since| {
            SignedDuration::try_from(since.elapsed()).unwrap_or(SignedDuration::MAX)
        });
        self.time.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }
}

impl VirtualClock {
    pub(crate) fn new(time: Timestamp, runs: bool) -> Self {
        let running_since = runs.then(Instant::now);
        // The zone is compiled into the program.
        let pacific = TimeZone::get(PACIFIC).unwrap_or(TimeZone::UTC);
        Self {
            setting: Mutex::new(Setting {
                time,
                running_since,
            }),
            pacific,
        }
    }

    /// Now, in Pacific time.
    pub(crate) fn now(&self) -> Zoned {
        self.change(|setting| setting.read())
            .to_zoned(self.pacific.clone())
    }

    pub(crate) fn set(&self, time: Timestamp) {
        self.change(|setting| {
            *setting = Setting {
                time,
                running_since: setting.running_since.map(|_| Instant::now()),
            }
        });
    }

    pub(crate) fn advance(&self, by: SignedDuration) {
        self.change(|setting| {
            setting.time = setting.time.saturating_add(by).unwrap_or(Timestamp::MAX);
        });
    }

    pub(crate) fn run(&self, runs: bool) {
        self.change(|setting| {
            *setting = Setting {
                time: setting.read(),
                running_since: runs.then(Instant::now),
            };
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Setting) -> T) -> T {
        // A setting is replaced whole, so one left by a panic is as good as any.
        change(&mut self.setting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pacific_dates_follow_summer_time() {
        let clock = VirtualClock::new("2026-03-08T07:59:59Z".parse().unwrap(), false);
        assert_eq!(clock.now().date().to_string(), "2026-03-07");
        clock.advance(SignedDuration::from_secs(1));
        assert_eq!(clock.now().date().to_string(), "2026-03-08");
        // After the change the day begins an hour earlier in UTC.
        clock.set("2026-03-09T07:00:00Z".parse().unwrap());
        assert_eq!(clock.now().date().to_string(), "2026-03-09");
    }

    #[test]
    fn a_running_clock_moves_on_its_own() {
        let start: Timestamp = "2026-03-08T12:00:00Z".parse().unwrap();
        let clock = VirtualClock::new(start, true);
        while clock.now().timestamp() <= start {}
        clock.run(false);
        let stopped = clock.now();
        assert_eq!(clock.now(), stopped);
    }
}
