//! How fast one property may be asked. Google limits sites, users and projects, not processes, so this
//! belongs to whoever sees all workers: [`Permits`] is the one place where leave for a call is asked,
//! and [`LocalPermits`] is the answer as long as the coordinator does not give it.
//!
//! The rate of a property starts low, climbs with every accepted call and is halved when Google says "too
//! fast"; each such answer also cools the property down. A load quota pauses the heavy dimension sets
//! alone. Nothing here knows HTTP, and time comes in as a parameter.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::backoff::Backoff;
use shared::search_console::{Dimension, DimensionSet};
use tokio::time::Instant;

/// The longest wait for a permit inside a worker. What would take longer goes back to the coordinator,
/// so that it holds no slot.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Cool-down after a "too fast": 2, 4, … 60 s with jitter.
const COOL_DOWN: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_mins(1));
/// So many cool-downs in a row mean that it is not the rate: Google uses one error for all quotas.
const COOL_DOWNS_UNTIL_LOAD: u32 = 6;
/// What Google recommends to wait for the ten-minute load quota.
const LOAD_PAUSE: Duration = Duration::from_mins(15);
/// The slowest rate: a property that is throttled for good still makes a call in ten seconds.
const RATE_MIN: f64 = 0.1;

/// What a call costs Google: grouping by page or query is what the load quota is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Days, countries, devices.
    Light,
    /// Pages, queries.
    Heavy,
}

impl Weight {
    /// The weight of a dimension set.
    #[must_use]
    pub fn of(dimensions: &DimensionSet) -> Self {
        if dimensions.contains(Dimension::Page) || dimensions.contains(Dimension::Query) {
            Self::Heavy
        } else {
            Self::Light
        }
    }
}

/// Leave for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    weight: Weight,
    granted_at: Instant,
}

/// What Google said to a call, as far as limits are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The call was within all limits.
    Accepted,
    /// Too fast; with Google's own wish for a pause, if it named one.
    TooFast(Option<Duration>),
    /// The ten-minute load quota is used up.
    LoadUsedUp,
    /// The day's quota is used up.
    DayUsedUp,
}

/// No leave for longer than is worth waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Which limit, for a person.
    pub reason: &'static str,
    /// How long from now.
    pub after: Duration,
    /// Set when a quota is used up: when it is worth trying again. The property is shown as limited until then.
    pub until: Option<Timestamp>,
}

/// Gives leave for calls. The coordinator's `permit(limit, key, n)` will answer here later.
#[async_trait]
pub trait Permits: Send + Sync + 'static {
    /// Waits until a call to this property may start; gives up at once when that is after `PATIENCE` or
    /// after `deadline`. Dropping the future gives the place in line away, not back.
    async fn permit(
        &self,
        property: &str,
        weight: Weight,
        deadline: Instant,
    ) -> Result<Permit, Parked>;

    /// Says how a call ended. Calls that broke on the way say nothing about limits and are not reported.
    fn report(&self, property: &str, permit: Permit, answer: Answer);
}

/// Permits of one process.
#[derive(Debug)]
pub struct LocalPermits {
    start: f64,
    max: f64,
    calendar: super::calendar::Calendar,
    // The standard mutex: held for arithmetic, never across an await.
    sites: Mutex<HashMap<String, Site>>,
}

impl LocalPermits {
    pub(super) fn new(start: f64, max: f64, calendar: super::calendar::Calendar) -> Self {
        let max = max.max(RATE_MIN);
        Self {
            start: start.clamp(RATE_MIN, max),
            max,
            calendar,
            sites: Mutex::default(),
        }
    }

    fn with<T>(&self, property: &str, act: impl FnOnce(&mut Site) -> T) -> T {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(site) = sites.get_mut(property) {
            return act(site);
        }
        act(sites
            .entry(property.to_owned())
            .or_insert_with(|| Site::new(self.start, Instant::now())))
    }
}

#[async_trait]
impl Permits for LocalPermits {
    async fn permit(
        &self,
        property: &str,
        weight: Weight,
        deadline: Instant,
    ) -> Result<Permit, Parked> {
        let now = Instant::now();
        let latest = deadline.min(now + PATIENCE);
        let granted_at = self.with(property, |site| site.reserve(weight, now, latest))?;
        tokio::time::sleep_until(granted_at).await;
        Ok(Permit { weight, granted_at })
    }

    fn report(&self, property: &str, permit: Permit, answer: Answer) {
        let wall = Timestamp::now();
        let midnight = self.calendar.next_midnight(wall);
        let moment = Moment {
            now: Instant::now(),
            wall,
            midnight,
            random: rand::random(),
        };
        self.with(property, |site| {
            site.report(permit, answer, self.max, moment);
        });
    }
}

/// When something is reported.
#[derive(Debug, Clone, Copy)]
struct Moment {
    now: Instant,
    wall: Timestamp,
    midnight: Timestamp,
    /// Between 0 and 1.
    random: f64,
}

impl Moment {
    fn until_midnight(&self) -> Duration {
        Duration::try_from(self.midnight.duration_since(self.wall)).unwrap_or_default()
    }
}

/// What is known of one property.
#[derive(Debug)]
struct Site {
    /// Calls per second.
    rate: f64,
    /// When the next call may start.
    next: Instant,
    /// When the rate was last halved: calls that started before say nothing new.
    halved_at: Option<Instant>,
    /// "Too fast" answers without an accepted call between them.
    cool_downs: u32,
    heavy: HeavySets,
    /// The day's quota is used up.
    day_used_up: Option<(Instant, Timestamp)>,
}

/// Where the load quota stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeavySets {
    Free,
    /// Paused, or tried again after a pause and not yet accepted.
    Paused(Instant, Timestamp),
    /// Failed again after the pause: until midnight.
    DayUsedUp(Instant, Timestamp),
}

impl Site {
    fn new(rate: f64, now: Instant) -> Self {
        Self {
            rate,
            next: now,
            halved_at: None,
            cool_downs: 0,
            heavy: HeavySets::Free,
            day_used_up: None,
        }
    }

    /// Takes the next place in line, unless that is later than `latest`.
    fn reserve(
        &mut self,
        weight: Weight,
        now: Instant,
        latest: Instant,
    ) -> Result<Instant, Parked> {
        if let Some((until, midnight)) = self.day_used_up {
            if now < until {
                return Err(day(until - now, midnight));
            }
            self.day_used_up = None;
        }
        if weight == Weight::Heavy {
            match self.heavy {
                HeavySets::DayUsedUp(until, midnight) if now < until => {
                    return Err(day(until - now, midnight));
                }
                HeavySets::DayUsedUp(..) => self.heavy = HeavySets::Free,
                HeavySets::Paused(until, wall) if now < until => {
                    return Err(Parked {
                        reason: "load quota of the property",
                        after: until - now,
                        until: Some(wall),
                    });
                }
                HeavySets::Paused(..) | HeavySets::Free => {}
            }
        }
        let granted_at = self.next.max(now);
        if granted_at > latest {
            return Err(Parked {
                reason: "rate limit of the property",
                after: granted_at - now,
                until: None,
            });
        }
        self.next = granted_at + Duration::from_secs_f64(self.rate.recip());
        Ok(granted_at)
    }

    fn report(&mut self, permit: Permit, answer: Answer, max: f64, moment: Moment) {
        match answer {
            Answer::Accepted => {
                self.cool_downs = 0;
                // One more call per second for each second of accepted calls.
                self.rate = (self.rate + 1.0 / self.rate).min(max);
                if permit.weight == Weight::Heavy
                    && matches!(self.heavy, HeavySets::Paused(until, _) if permit.granted_at >= until)
                {
                    self.heavy = HeavySets::Free;
                }
            }
            Answer::TooFast(pause) => self.slow_down(permit, pause, moment),
            Answer::LoadUsedUp => self.pause_heavy(permit, moment),
            Answer::DayUsedUp => {
                self.day_used_up = Some((moment.now + moment.until_midnight(), moment.midnight));
            }
        }
    }

    fn slow_down(&mut self, permit: Permit, pause: Option<Duration>, moment: Moment) {
        // Calls that were under way together get the same answer: it counts once.
        if self.halved_at.is_some_and(|at| permit.granted_at < at) {
            return;
        }
        self.halved_at = Some(moment.now);
        self.rate = (self.rate / 2.0).max(RATE_MIN);
        self.cool_downs += 1;
        // Between half and all of the bound: full jitter could mean no pause at all.
        let bound = COOL_DOWN.bound(self.cool_downs);
        let cool_down = bound.mul_f64(f64::midpoint(1.0, moment.random));
        self.next = self.next.max(moment.now + pause.unwrap_or(cool_down));
        if self.cool_downs >= COOL_DOWNS_UNTIL_LOAD && permit.weight == Weight::Heavy {
            self.pause_heavy(permit, moment);
        }
    }

    fn pause_heavy(&mut self, permit: Permit, moment: Moment) {
        match self.heavy {
            HeavySets::Free => {
                self.heavy = HeavySets::Paused(moment.now + LOAD_PAUSE, moment.wall + LOAD_PAUSE);
            }
            // A call from after the pause: the short pause was not enough, so it is the day's quota.
            HeavySets::Paused(until, _) if permit.granted_at >= until => {
                self.heavy =
                    HeavySets::DayUsedUp(moment.now + moment.until_midnight(), moment.midnight);
            }
            // A call that was under way when the pause began.
            HeavySets::Paused(..) | HeavySets::DayUsedUp(..) => {}
        }
    }
}

fn day(after: Duration, midnight: Timestamp) -> Parked {
    Parked {
        reason: "daily quota of the property",
        after,
        until: Some(midnight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const MAX: f64 = 20.0;

    struct Bench {
        site: Site,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                site: Site::new(5.0, now),
                now,
            }
        }

        fn reserve(&mut self, weight: Weight) -> Result<Permit, Parked> {
            let granted_at = self.site.reserve(weight, self.now, self.now + PATIENCE)?;
            Ok(Permit { weight, granted_at })
        }

        fn report(&mut self, permit: Permit, answer: Answer) {
            let wall: Timestamp = "2026-03-01T18:00:00Z".parse().unwrap();
            let midnight: Timestamp = "2026-03-02T08:00:00Z".parse().unwrap();
            self.site.report(
                permit,
                answer,
                MAX,
                Moment {
                    now: self.now,
                    wall,
                    midnight,
                    random: 1.0,
                },
            );
        }
    }

    #[test]
    fn calls_are_spaced_and_the_rate_climbs_to_its_maximum() {
        let mut bench = Bench::new();
        let first = bench.reserve(Weight::Light).unwrap();
        let second = bench.reserve(Weight::Light).unwrap();
        assert_eq!(second.granted_at - first.granted_at, S / 5);
        for _ in 0..500 {
            bench.report(first, Answer::Accepted);
        }
        assert!((bench.site.rate - MAX).abs() < f64::EPSILON);
    }

    #[test]
    fn too_fast_halves_once_for_calls_under_way_and_cools_down() {
        let mut bench = Bench::new();
        let under_way = [
            bench.reserve(Weight::Light).unwrap(),
            bench.reserve(Weight::Light).unwrap(),
        ];
        bench.now += S;
        for permit in under_way {
            bench.report(permit, Answer::TooFast(None));
        }
        assert!((bench.site.rate - 2.5).abs() < f64::EPSILON);
        let next = bench.reserve(Weight::Light).unwrap();
        assert_eq!(next.granted_at, bench.now + 2 * S);
        bench.now = next.granted_at;
        bench.report(next, Answer::TooFast(Some(30 * S)));
        assert_eq!(
            bench.reserve(Weight::Light).unwrap().granted_at,
            bench.now + 30 * S
        );
    }

    #[test]
    fn a_wait_beyond_patience_is_not_waited_for() {
        let mut bench = Bench::new();
        let permit = bench.reserve(Weight::Light).unwrap();
        bench.report(permit, Answer::TooFast(Some(90 * S)));
        assert_eq!(bench.reserve(Weight::Light).unwrap_err().after, 90 * S);
    }

    #[test]
    fn load_pauses_heavy_sets_alone_and_then_the_day() {
        let mut bench = Bench::new();
        let permit = bench.reserve(Weight::Heavy).unwrap();
        let under_way = bench.reserve(Weight::Heavy).unwrap();
        bench.report(permit, Answer::LoadUsedUp);
        bench.report(under_way, Answer::LoadUsedUp);
        let parked = bench.reserve(Weight::Heavy).unwrap_err();
        let until = "2026-03-01T18:15:00Z".parse().unwrap();
        assert_eq!((parked.after, parked.until), (LOAD_PAUSE, Some(until)));
        assert!(bench.reserve(Weight::Light).is_ok());
        bench.now += LOAD_PAUSE;
        let permit = bench.reserve(Weight::Heavy).unwrap();
        bench.report(permit, Answer::LoadUsedUp);
        let parked = bench.reserve(Weight::Heavy).unwrap_err();
        assert_eq!(
            (parked.after, parked.until.is_some()),
            (14 * 3600 * S, true)
        );
        assert!(bench.reserve(Weight::Light).is_ok());
    }

    #[test]
    fn an_accepted_heavy_call_after_the_pause_forgets_it() {
        let mut bench = Bench::new();
        let permit = bench.reserve(Weight::Heavy).unwrap();
        bench.report(permit, Answer::LoadUsedUp);
        bench.now += LOAD_PAUSE;
        let permit = bench.reserve(Weight::Heavy).unwrap();
        bench.report(permit, Answer::Accepted);
        assert_eq!(bench.site.heavy, HeavySets::Free);
    }

    #[test]
    fn rate_errors_that_persist_are_a_load_quota() {
        let mut bench = Bench::new();
        for _ in 0..COOL_DOWNS_UNTIL_LOAD {
            let permit = bench.reserve(Weight::Heavy).unwrap();
            bench.now = permit.granted_at;
            bench.report(permit, Answer::TooFast(None));
        }
        assert_eq!(bench.reserve(Weight::Heavy).unwrap_err().after, LOAD_PAUSE);
    }

    #[test]
    fn a_used_up_day_parks_everything_until_midnight() {
        let mut bench = Bench::new();
        let permit = bench.reserve(Weight::Light).unwrap();
        bench.report(permit, Answer::DayUsedUp);
        assert_eq!(
            bench.reserve(Weight::Light).unwrap_err().after,
            14 * 3600 * S
        );
        bench.now += 14 * 3600 * S;
        assert!(bench.reserve(Weight::Light).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_is_given_when_its_time_has_come() {
        let permits = LocalPermits::new(2.0, 2.0, super::super::calendar::Calendar::new(None));
        let begin = Instant::now();
        for _ in 0..3 {
            permits
                .permit("https://a/", Weight::Light, begin + 10 * S)
                .await
                .unwrap();
        }
        assert_eq!(begin.elapsed(), S);
    }
}
