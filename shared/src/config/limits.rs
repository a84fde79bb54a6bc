//! `[limits.<name>]`: how fast a service may be called, over the whole fleet.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;
use crate::name::LimitName;

/// What Google allows (developers.google.com/webmaster-tools/limits), and what survived in production: five
/// requests a second and site to begin with (PostHog/posthog#61938). A section of the same name changes
/// what it names and leaves the rest.
pub(super) const SEARCH_CONSOLE_LIMITS: &str = r#"
[limits."gsc.site"]
rate = "1200/min"
start = "5/s"

[limits."gsc.user"]
rate = "1200/min"

[limits."gsc.project"]
rate = "40000/min"
scope = "global"

[limits."gsc.load"]
"#;

/// A limit. The coordinator reads it; workers only know its name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitConfig {
    /// Most calls in a unit of time: `"20/s"`, `"1200/min"`, `"500/h"`, `"30000000/day"`. About 1.5 % less are
    /// let out, so that calls which are a little late on their way do not add up to more in any one minute. Without
    /// a rate, calls are only held back after the service has said that a quota is used up.
    pub rate: Option<Rate>,
    /// Calls that may start together after a pause (1–10,000), on top of the rate. Default 1: right where the
    /// service counts calls in a window of time.
    pub burst: u32,
    /// Who shares it. Default `key`.
    pub scope: LimitScope,
    /// Makes the limit adaptive: calls begin at this rate, which is halved each time the service says "too
    /// fast", and climbs by one call per second for each second of accepted calls, up to `rate`. More than
    /// `rate` counts as `rate`.
    pub start: Option<Rate>,
    /// Where halving ends. Default `6/min`; more than `start` counts as `start`.
    pub min: Rate,
    /// Most keys that are followed at a time (1–1,000,000). Default 10,000, each about 300 bytes. When more are
    /// busy, calls of further keys wait.
    pub max_keys: u32,
}

/// Who shares a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitScope {
    /// Each key has its own.
    #[default]
    Key,
    /// Each pipeline has its own.
    Pipeline,
    /// Everybody.
    Global,
}

/// So many calls in a unit of time.
#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate {
    calls: f64,
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
    Day,
}

impl Unit {
    const ALL: [Self; 4] = [Self::Second, Self::Minute, Self::Hour, Self::Day];

    fn as_str(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "min",
            Self::Hour => "h",
            Self::Day => "day",
        }
    }

    fn length(self) -> Duration {
        match self {
            Self::Second => Duration::from_secs(1),
            Self::Minute => Duration::from_mins(1),
            Self::Hour => Duration::from_hours(1),
            Self::Day => Duration::from_hours(24),
        }
    }
}

impl Rate {
    /// The slowest and fastest that make sense: one call a day, and a million a second.
    const SLOWEST: f64 = 1.0 / 86_400.0;
    const FASTEST: f64 = 1e6;

    /// So many calls a minute.
    #[must_use]
    pub const fn per_minute(calls: f64) -> Self {
        let unit = Unit::Minute;
        Self { calls, unit }
    }

    /// Calls per second.
    #[must_use]
    pub fn per_second(self) -> f64 {
        self.calls / self.unit.length().as_secs_f64()
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is no rate: write calls and a unit, such as \"20/s\" or \"1200/min\"")
        };
        let (calls, unit) = text.split_once('/').ok_or_else(wrong)?;
        let calls: f64 = calls.trim().parse().map_err(|_| wrong())?;
        let unit = unit.trim();
        let known = Unit::ALL.into_iter().find(|known| known.as_str() == unit);
        let rate = Self {
            calls,
            unit: known.ok_or_else(wrong)?,
        };
        // Written so that NaN is refused, too.
        if rate.per_second() >= Self::SLOWEST * 0.999 && rate.per_second() <= Self::FASTEST {
            Ok(rate)
        } else {
            Err(format!("{text:?} must be 1/day to 1000000/s"))
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.calls, self.unit.as_str())
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            rate: None,
            burst: 1,
            scope: LimitScope::default(),
            start: None,
            min: Rate::per_minute(6.0),
            max_keys: 10_000,
        }
    }
}

impl LimitConfig {
    const MAX_BURST: u32 = 10_000;
    const MAX_KEYS: u32 = 1_000_000;

    pub(super) fn check(&self, name: &LimitName) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::wrong(format!("limits.{name}.{key}"), problem))
        };
        if self.burst == 0 || self.burst > Self::MAX_BURST {
            let problem = format!("must be 1 to {}, is {}", Self::MAX_BURST, self.burst);
            return wrong("burst", problem);
        }
        if self.max_keys == 0 || self.max_keys > Self::MAX_KEYS {
            let problem = format!("must be 1 to {}, is {}", Self::MAX_KEYS, self.max_keys);
            return wrong("max_keys", problem);
        }
        if self.start.is_some() && self.rate.is_none() {
            let problem = "needs a rate to climb to: set rate, too".to_owned();
            return wrong("start", problem);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_shown_with_their_unit() {
        for (text, per_second) in [
            ("20/s", 20.0),
            ("1200/min", 20.0),
            ("1200 / min", 20.0),
            ("0.5/s", 0.5),
            ("3600/h", 1.0),
            ("86400/day", 1.0),
            ("1/day", 1.0 / 86_400.0),
        ] {
            let rate = Rate::try_from(text.to_owned()).unwrap();
            assert!((rate.per_second() - per_second).abs() < 1e-9, "{text}");
            assert_eq!(rate.to_string(), text.replace(' ', ""));
        }
        for text in [
            "", "20", "20/", "/s", "x/s", "20/week", "0/s", "-1/s", "NaN/s", "inf/s", "0.5/day",
        ] {
            assert!(Rate::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
