//! How bad a value is, by where it comes from and what it was before. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use shared::config::LevelsConfig;
use utoipa::ToSchema;

/// How bad it is.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    #[default]
    Ok,
    /// Somebody should know.
    Warn,
    /// Somebody should act.
    Critical,
}

/// What is measured.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Messages with outcomes, and notices, that wait for the coordinator.
    Inbox,
    /// Batches that are pending.
    Backlog,
    /// Messages that wait in the work queues.
    Depth,
    /// Seconds for which the oldest batch that may go out has waited.
    Age,
}

/// From when on a value is how bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// [`Level::Warn`] from here on.
    pub warn: u64,
    /// [`Level::Critical`] from here on.
    pub critical: u64,
}

impl Thresholds {
    /// The configured ones.
    #[must_use]
    pub fn of(measure: Measure, config: &LevelsConfig) -> Self {
        let (warn, critical) = match measure {
            Measure::Inbox => (config.inbox_warn, config.inbox_critical),
            Measure::Backlog => (config.backlog_warn, config.backlog_critical),
            Measure::Depth => (config.depth_warn, config.depth_critical),
            Measure::Age => (
                config.age_warn.get().as_secs(),
                config.age_critical.get().as_secs(),
            ),
        };
        Self { warn, critical }
    }

    /// The level of a value after another level: up at once, down only below 80 % of where that level begins.
    #[must_use]
    pub fn level(&self, before: Level, value: u64) -> Level {
        let reached = |threshold: u64, at: Level| {
            let low = if before >= at {
                threshold - threshold / 5
            } else {
                threshold
            };
            value >= low
        };
        if reached(self.critical, Level::Critical) {
            Level::Critical
        } else if reached(self.warn, Level::Warn) {
            Level::Warn
        } else {
            Level::Ok
        }
    }
}

impl Measure {
    /// The word that stands for it in metrics, logs and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::Backlog => "backlog",
            Self::Depth => "depth",
            Self::Age => "age",
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Critical => "critical",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INBOX: Thresholds = Thresholds {
        warn: 500,
        critical: 800,
    };

    #[test]
    fn a_level_rises_at_once_and_falls_late() {
        let mut level = Level::Ok;
        let course = [
            (499, Level::Ok),
            (500, Level::Warn),
            (401, Level::Warn),
            (400, Level::Warn),
            (399, Level::Ok),
            (800, Level::Critical),
            (640, Level::Critical),
            (639, Level::Warn),
            (799, Level::Warn),
            (5_000, Level::Critical),
            (0, Level::Ok),
        ];
        for (value, expected) in course {
            level = INBOX.level(level, value);
            assert_eq!(level, expected, "at {value}");
        }
    }
}
