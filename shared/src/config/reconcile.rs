//! `[reconcile]`: when a batch is taken for lost.

use serde::Deserialize;

use super::{ConfigError, Span};

/// When a batch that is out is taken for lost and goes out again. `TIDEGATE_RECONCILE__…`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReconcileConfig {
    /// How long nobody may have had it, while its queue is empty. Default 35 s; at least three heartbeats, since
    /// the broker itself needs two to three to notice that a worker's connection is dead, and has its batches
    /// until then. Longer heals later; work is never done twice because of it where results are stored.
    pub after: Span,
}

impl Default for ReconcileConfig {
    fn default() -> Self {
        Self {
            after: Span::seconds(35),
        }
    }
}

impl ReconcileConfig {
    /// What is heard of batches is remembered for this long.
    const MAX_AFTER: Span = Span::seconds(60 * 60);

    pub(super) fn check(&self, heartbeat: Span) -> Result<(), ConfigError> {
        let heartbeats = Span::seconds(3 * heartbeat.get().as_secs());
        if self.after < heartbeats || self.after > Self::MAX_AFTER {
            let problem = format!(
                "must satisfy 3 x heartbeat <= after <= {}: 3 x {heartbeat} = {heartbeats}, after = {}",
                Self::MAX_AFTER,
                self.after
            );
            return Err(ConfigError::wrong("reconcile.after", problem));
        }
        Ok(())
    }
}
