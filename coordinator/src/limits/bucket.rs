//! One key's share of a limit: its line, its rate, and what the service said about it.
//!
//! An adaptive rate starts low, climbs with every accepted call and is halved when the service says "too
//! fast"; each such answer also cools the key down. A quota that is used up holds the key for as long as the
//! worker, which knows the service, says.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::ask::{Pauses, Said};
use shared::backoff::Backoff;
use shared::config::LimitConfig;

use super::Moment;
use super::line::{Line, Pace};

/// How much slower calls are let out than the rate says: in a window of time in which a service counts, calls
/// may so be late by this part of the window (0.9 s in a minute) without adding up to more than it allows.
const HEADROOM: f64 = 0.015;
/// Cool-down after a "too fast": 2, 4, … 60 s with jitter.
const COOL_DOWN: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_mins(1));
/// So many "too fast" in a row mean, for a limit without a rate, that its quota is used up: some services
/// use one error for both.
const TOO_FAST_UNTIL_USED_UP: u32 = 6;

/// How far a line may reach into the future before the ledger knows: after a crash nobody counts on less.
const UNSAVED: Duration = Duration::from_secs(2);

/// What the configuration says of every key's share.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// Calls per second at the start and at most; `None`: there is no rate.
    rates: Option<Rates>,
    burst: u32,
}

#[derive(Debug, Clone, Copy)]
struct Rates {
    min: f64,
    start: f64,
    max: f64,
}

/// One key's share.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) line: Line,
    /// Calls per second, if the limit has a rate.
    rate: f64,
    /// When the service last said "too fast": calls that were asked for before say nothing new.
    slowed_at: Option<Duration>,
    /// "Too fast" answers without an accepted call between them.
    too_fast: u32,
    quota: Quota,
    /// When somebody last asked or told something.
    pub(super) used_at: Duration,
    /// Until when the dispatcher knows that the key is held.
    pub(super) told_until: Duration,
    /// Where the line ended when it was last remembered.
    remembered_to: Duration,
    pub(super) counts: Counts,
}

/// What happened since the coordinator started, or since the key was last forgotten.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) granted: u64,
    pub(super) parked: u64,
    pub(super) throttled: u64,
}

/// Where a quota stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quota {
    Free,
    /// Used up, or tried again after a pause and not yet accepted.
    UsedUp {
        since: Duration,
        until: Duration,
        /// It was used up once more, right after the first pause.
        again: bool,
    },
}

/// What is remembered of a bucket over a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Calls per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    /// When the next call would be on time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_up: Option<UsedUp>,
    #[serde(default, skip_serializing_if = "is_zero")]
    too_fast: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct UsedUp {
    until: Timestamp,
    again: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Policy {
    pub(super) fn new(config: &LimitConfig) -> Self {
        let rates = config.rate.map(|rate| {
            let max = rate.per_second();
            match config.start {
                Some(start) => {
                    let start = start.per_second().min(max);
                    let min = config.min.per_second().min(start);
                    Rates { min, start, max }
                }
                None => Rates {
                    min: max,
                    start: max,
                    max,
                },
            }
        });
        Self {
            rates,
            burst: config.burst,
        }
    }

    /// The most calls per second that a key may ever make.
    pub(super) fn max(&self) -> Option<f64> {
        self.rates.map(|rates| rates.max)
    }
}

impl Bucket {
    /// A key that nothing is known of. `cautious`: it may have been busy until just now, and its calls may have
    /// been let out ahead of time, as far as need not be remembered.
    pub(super) fn new(policy: &Policy, now: Duration, cautious: bool) -> Self {
        let mut bucket = Self {
            line: Line::default(),
            rate: policy.rates.map_or(f64::INFINITY, |rates| rates.start),
            slowed_at: None,
            too_fast: 0,
            quota: Quota::Free,
            used_at: now,
            told_until: Duration::ZERO,
            remembered_to: Duration::ZERO,
            counts: Counts::default(),
        };
        if cautious {
            bucket.empty_from(policy, now + UNSAVED);
        }
        bucket
    }

    /// Calls go on as if all that may start together had just started.
    fn empty_from(&mut self, policy: &Policy, on_time: Duration) {
        let pace = self.pace(policy);
        self.line = Line::resumed(on_time + pace.interval * policy.burst);
    }

    pub(super) fn pace(&self, policy: &Policy) -> Pace {
        let interval = Duration::try_from_secs_f64((1.0 + HEADROOM) / self.rate);
        Pace {
            interval: interval.unwrap_or_default(),
            burst: policy.burst,
        }
    }

    /// Calls per second; `None` without a rate.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate.is_finite().then_some(self.rate)
    }

    /// Until when the quota is used up.
    pub(super) fn used_up_until(&self, now: Duration) -> Option<Duration> {
        match self.quota {
            Quota::UsedUp { until, .. } if now < until => Some(until),
            _ => None,
        }
    }

    pub(super) fn earliest(&self, from: Duration, n: u32, policy: &Policy) -> Duration {
        self.line.earliest(from, n, self.pace(policy))
    }

    pub(super) fn take(&mut self, at: Duration, n: u32) {
        // Without a rate nobody is in anybody's way.
        if self.rate.is_finite() {
            self.line.take(at, n);
        }
        self.counts.granted += 1;
        if let Quota::UsedUp { again: true, .. } = self.quota {
            self.quota = Quota::Free;
        }
    }

    /// The service said something to a call that was asked for at `asked_at`.
    pub(super) fn hear(
        &mut self,
        said: &Said,
        asked_at: Duration,
        policy: &Policy,
        moment: Moment,
    ) {
        match said {
            Said::Accepted => self.accepted(asked_at, policy),
            Said::TooFast {
                retry_after,
                persistent,
            } => {
                self.counts.throttled += 1;
                self.slow_down(*retry_after, *persistent, asked_at, policy, moment);
            }
            Said::UsedUp(pauses) => {
                self.counts.throttled += 1;
                self.used_up(*pauses, asked_at, moment.at);
            }
        }
    }

    fn accepted(&mut self, asked_at: Duration, policy: &Policy) {
        self.too_fast = 0;
        if let Some(rates) = policy.rates {
            // One more call per second for each second of accepted calls.
            self.rate = (self.rate + self.rate.recip()).min(rates.max);
        }
        if matches!(self.quota, Quota::UsedUp { until, .. } if asked_at >= until) {
            self.quota = Quota::Free;
        }
    }

    fn slow_down(
        &mut self,
        retry_after: Option<Duration>,
        persistent: Option<Pauses>,
        asked_at: Duration,
        policy: &Policy,
        moment: Moment,
    ) {
        // What the service asks for counts each time: another call's answer may ask for longer.
        if let Some(retry_after) = retry_after {
            self.line.hold(moment.at + retry_after);
        }
        // Calls that were under way together get the same answer: it counts once.
        if self
            .slowed_at
            .is_some_and(|slowed_at| asked_at <= slowed_at)
        {
            return;
        }
        self.slowed_at = Some(moment.at);
        self.too_fast = self.too_fast.saturating_add(1);
        if let Some(rates) = policy.rates {
            self.rate = (self.rate / 2.0).clamp(rates.min, rates.max);
            if retry_after.is_none() {
                // Between half and all of the bound: full jitter could mean no pause at all.
                let bound = COOL_DOWN.bound(self.too_fast);
                let cool_down = bound.mul_f64(f64::midpoint(1.0, moment.random));
                self.line.hold(moment.at + cool_down);
            }
        } else if let Some(pauses) = persistent
            && self.too_fast >= TOO_FAST_UNTIL_USED_UP
        {
            self.used_up(pauses, asked_at, moment.at);
        }
    }

    fn used_up(&mut self, pauses: Pauses, asked_at: Duration, now: Duration) {
        let (pause, again) = match self.quota {
            Quota::Free => (pauses.first, false),
            // A call from after the pause: that was not enough, so it is a longer quota.
            Quota::UsedUp { since, until, .. } if now >= until && asked_at > since => {
                (pauses.again, true)
            }
            // A call that was under way when the pause began.
            Quota::UsedUp { .. } => return,
        };
        self.quota = Quota::UsedUp {
            since: now,
            until: now + pause,
            again,
        };
    }

    /// Whether there is nothing that a new bucket would not know.
    pub(super) fn is_like_new(&self, policy: &Policy, now: Duration) -> bool {
        let start = policy.rates.map_or(f64::INFINITY, |rates| rates.start);
        self.line.len() == 0
            && self.line.end(self.pace(policy)) <= now
            && self.line.held_until() <= now
            && self.rate.total_cmp(&start).is_eq()
            && self.quota == Quota::Free
            && self.too_fast == 0
    }

    /// Whether it has to be remembered at once: calls may be let out later than anybody would expect who knows
    /// what is remembered.
    pub(super) fn runs_ahead(&self, policy: &Policy, now: Duration) -> bool {
        self.line.end(self.pace(policy)) > self.remembered_to.max(now) + UNSAVED
    }

    /// Whether somebody has a place, or the key is held.
    pub(super) fn is_busy(&self, now: Duration) -> bool {
        self.line.len() > 0 || self.line.held_until() > now || self.used_up_until(now).is_some()
    }

    pub(super) fn remember(&mut self, policy: &Policy, moment: Moment) -> Remembered {
        self.remembered_to = self.line.end(self.pace(policy));
        let next = self.remembered_to.max(self.line.held_until());
        Remembered {
            rate: self.rate(),
            next: (next > moment.at).then(|| moment.wall_at(next)),
            used_up: match self.quota {
                Quota::Free => None,
                Quota::UsedUp { until, again, .. } => Some(UsedUp {
                    until: moment.wall_at(until),
                    again,
                }),
            },
            too_fast: self.too_fast,
        }
    }

    /// A key as it was remembered. `unsaved`: how much longer calls may have gone on after that; `None` when
    /// nothing happened since.
    pub(super) fn recalled(
        remembered: &Remembered,
        policy: &Policy,
        moment: Moment,
        unsaved: Option<Duration>,
    ) -> Self {
        let mut bucket = Self::new(policy, moment.at, false);
        if let (Some(rates), Some(rate)) = (policy.rates, remembered.rate) {
            bucket.rate = rate.clamp(rates.min, rates.max);
        }
        bucket.too_fast = remembered.too_fast;
        let next = remembered
            .next
            .map_or(Duration::ZERO, |at| moment.span_of(at));
        match unsaved {
            None => bucket.line = Line::resumed(next),
            Some(unsaved) => bucket.empty_from(policy, moment.at.max(next + unsaved)),
        }
        if let Some(UsedUp { until, again }) = remembered.used_up {
            bucket.quota = Quota::UsedUp {
                since: moment.at,
                until: moment.span_of(until),
                again,
            };
        }
        bucket
    }
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;
