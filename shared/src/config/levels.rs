//! `[levels]`: from when on the coordinator says that something piles up.

use serde::Deserialize;

use super::{ConfigError, Span};

/// What is `warn` and what is `critical`. A level falls again once its value is below 80 % of where it began, so
/// that one that moves about a threshold says so once. `TIDEGATE_LEVELS__…`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LevelsConfig {
    /// Messages and notices that wait for the coordinator itself. Defaults 500 and 800. Critical: submissions are
    /// refused with `backpressure` until it has caught up.
    pub inbox_warn: u64,
    /// See `inbox_warn`.
    pub inbox_critical: u64,
    /// Batches that are pending in the ledger. Defaults 5,000,000 and 8,000,000: half and most of
    /// `api.backlog_limit`, which is what refuses more of them.
    pub backlog_warn: u64,
    /// See `backlog_warn`.
    pub backlog_critical: u64,
    /// Messages that wait in all work queues. Windows keep this far lower, so more means that something else
    /// publishes, or that many pipelines have no worker. Defaults 20,000 and 50,000; a single queue refuses
    /// messages at 100,000. Critical: submissions are refused with `backpressure`.
    pub depth_warn: u64,
    /// See `depth_warn`.
    pub depth_critical: u64,
    /// How long the oldest batch that may go out has waited for it. Defaults 1 h and 6 h: a large run takes
    /// hours and is nothing to worry about.
    pub age_warn: Span,
    /// See `age_warn`.
    pub age_critical: Span,
}

impl Default for LevelsConfig {
    fn default() -> Self {
        Self {
            inbox_warn: 500,
            inbox_critical: 800,
            backlog_warn: 5_000_000,
            backlog_critical: 8_000_000,
            depth_warn: 20_000,
            depth_critical: 50_000,
            age_warn: Span::seconds(60 * 60),
            age_critical: Span::seconds(6 * 60 * 60),
        }
    }
}

impl LevelsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let numbers = [
            ("inbox", self.inbox_warn, self.inbox_critical),
            ("backlog", self.backlog_warn, self.backlog_critical),
            ("depth", self.depth_warn, self.depth_critical),
        ];
        for (name, warn, critical) in numbers {
            if warn == 0 || warn > critical {
                let problem = format!(
                    "must satisfy 1 <= {name}_warn <= {name}_critical: {warn} and {critical}"
                );
                return Err(ConfigError::wrong(format!("levels.{name}_warn"), problem));
            }
        }
        if self.age_warn > self.age_critical {
            let problem = format!(
                "must be at most age_critical: {} > {}",
                self.age_warn, self.age_critical
            );
            return Err(ConfigError::wrong("levels.age_warn", problem));
        }
        Ok(())
    }
}
