//! Payloads that say when they were sent, so that whoever receives them, in whichever process of this machine,
//! knows how long they took.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::payload_text;

/// The pipeline whose handler counts [`WAITED`].
pub const PIPELINE: &str = "stamped";
/// The statistic that holds how long the batch took to reach its handler, in microseconds.
pub const WAITED: &str = "waited_micros";

/// A payload as large as the others.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stamped {
    number: usize,
    sent_micros: u64,
    text: String,
}

impl Stamped {
    /// Sent now.
    #[must_use]
    pub fn now(number: usize) -> Self {
        Self {
            number,
            sent_micros: now(),
            text: payload_text(number),
        }
    }

    /// How long it took, if it arrived at `received`.
    #[must_use]
    pub fn wait_until(&self, received: u64) -> Duration {
        Duration::from_micros(received.saturating_sub(self.sent_micros))
    }
}

/// Microseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .unwrap_or_default()
        .as_micros()
        .try_into()
        .unwrap_or(u64::MAX)
}
