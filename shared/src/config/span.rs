//! A span of time in the config: `"30s"`, `"5m"`, `"1h 30m"`.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

/// A positive span of time that the config gives as text with a unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(Duration);

impl Span {
    /// So many seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The span as the standard library's type.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no span of time: write a number with a unit, such as \"30s\" or \"5m\""
            )
        };
        let parsed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
        let span = Duration::try_from(parsed).map_err(|_| wrong())?;
        if span.is_zero() {
            return Err(format!("{text:?} must be longer than zero"));
        }
        Ok(Self(span))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
