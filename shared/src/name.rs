//! The names that messages and records carry: pipeline, limit, sink, key, lane, attempt, instance.
//! Each is checked once, when it is made, so no later code has to look again.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Longest accepted pipeline name, in bytes. AMQP names end at 255; the prefix and the lane need room.
pub const MAX_PIPELINE_NAME_BYTES: usize = 100;
/// Longest accepted limit name, in bytes.
pub const MAX_LIMIT_NAME_BYTES: usize = 100;
/// Longest accepted sink name, in bytes.
pub const MAX_SINK_NAME_BYTES: usize = 100;
/// Longest accepted key, in bytes: room for a long URL, small enough for a message header.
pub const MAX_KEY_BYTES: usize = 2_048;

/// Why a text is no [`PipelineName`], no [`LimitName`], no [`SinkName`] or no [`Key`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A pipeline name with other characters, or too long, or empty.
    #[error(
        "pipeline name {0:?} is not usable: start with a letter, go on with a-z, 0-9, '_', '-' or '.', \
         at most {MAX_PIPELINE_NAME_BYTES} bytes"
    )]
    Pipeline(String),
    /// A limit name with other characters, or too long, or empty.
    #[error(
        "limit name {0:?} is not usable: start with a letter, go on with a-z, 0-9, '_', '-' or '.', \
         at most {MAX_LIMIT_NAME_BYTES} bytes"
    )]
    Limit(String),
    /// A sink name with other characters, or too long, or empty.
    #[error(
        "sink name {0:?} is not usable: start with a letter, go on with a-z, 0-9, '_', '-' or '.', \
         at most {MAX_SINK_NAME_BYTES} bytes"
    )]
    Sink(String),
    /// An empty key.
    #[error("the key is empty: leave it out to use the default key, or name whose work it is")]
    EmptyKey,
    /// A key over [`MAX_KEY_BYTES`].
    #[error("the key has {0} bytes, at most {MAX_KEY_BYTES} are allowed")]
    LongKey(usize),
    /// A key with a control character (NUL, newline, …).
    #[error("the key contains the control character {0:?}, which is not allowed")]
    ControlCharacter(char),
}

/// A named kind of work, such as `gsc.slice` or `thumbnails`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PipelineName(std::sync::Arc<str>);

impl PipelineName {
    /// Checks the name: it becomes part of queue names, routing keys and metric labels.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.len() <= MAX_PIPELINE_NAME_BYTES && is_plain(name) {
            Ok(Self(name.into()))
        } else {
            Err(NameError::Pipeline(shorten(name)))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A named limit, such as `gsc.site`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LimitName(std::sync::Arc<str>);

impl LimitName {
    /// Checks the name: it becomes a metric label.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.len() <= MAX_LIMIT_NAME_BYTES && is_plain(name) {
            Ok(Self(name.into()))
        } else {
            Err(NameError::Limit(shorten(name)))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A named sink, such as `visits`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SinkName(std::sync::Arc<str>);

impl SinkName {
    /// Checks the name: it becomes a metric label and the name of a folder.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.len() <= MAX_SINK_NAME_BYTES && is_plain(name) {
            Ok(Self(name.into()))
        } else {
            Err(NameError::Sink(shorten(name)))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whose work a batch is: a property URL, a tenant. Unit of fairness and of limits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(std::sync::Arc<str>);

impl Key {
    /// Checks the key.
    pub fn new(key: &str) -> Result<Self, NameError> {
        if key.is_empty() {
            return Err(NameError::EmptyKey);
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(NameError::LongKey(key.len()));
        }
        if let Some(control) = key.chars().find(|c| c.is_control()) {
            return Err(NameError::ControlCharacter(control));
        }
        Ok(Self(key.into()))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The lane that this key belongs to when there are `lanes` of them.
    ///
    /// # Panics
    /// When `lanes` is zero, which [`crate::config`] refuses.
    #[must_use]
    pub fn lane(&self, lanes: u16) -> Lane {
        let lane = xxh3_64(self.0.as_bytes()) % u64::from(lanes);
        Lane(u16::try_from(lane).expect("a remainder is smaller than its u16 divisor"))
    }
}

impl Default for Key {
    /// The key of a batch that was submitted without one.
    fn default() -> Self {
        Self("default".into())
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text_conversions!(PipelineName);
text_conversions!(LimitName);
text_conversions!(SinkName);
text_conversions!(Key);

/// A shard of the keys: `xxh3(key) % lanes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lane(u16);

impl Lane {
    /// The one that there always is. What is not divided lives with its owner.
    pub const FIRST: Self = Self(0);

    /// Every lane when there are `lanes` of them.
    pub fn all(lanes: u16) -> impl Iterator<Item = Self> {
        (0..lanes).map(Self)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which dispatch of a batch this is, counted from 1. A redelivery by the broker keeps the number.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Attempt(u32);

impl Attempt {
    /// "Never dispatched": what a fresh batch has.
    pub const NONE: Self = Self(0);

    /// The attempt with this number.
    #[must_use]
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// The next dispatch of the same batch.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number, for storing and showing.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One running process (a worker or a coordinator), unique among those that run at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(String);

impl Instance {
    /// `<role>-<host>-<process id>-<random>`: readable in the RabbitMQ UI, unique without coordination
    /// (process ids repeat between containers, so the random part decides).
    #[must_use]
    pub fn generate(role: &str) -> Self {
        let host = std::env::var("HOSTNAME")
            .ok()
            .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
            .unwrap_or_default();
        let host: String = host.trim().chars().take(40).collect();
        let host = if host.is_empty() { "host" } else { &host };
        let pid = std::process::id();
        Self(format!("{role}-{host}-{pid}-{:04x}", rand::random::<u16>()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Instance {
    fn from(name: String) -> Self {
        Self(name)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a name is fit for queue names and metric labels.
fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(allowed)
}

/// The start of a text that may be huge, for an error message.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipeline_names_are_fit_for_queue_names() {
        for good in ["gsc.slice", "a", "thumbnails-2", "x_y"] {
            assert!(PipelineName::new(good).is_ok(), "{good}");
        }
        let long = "x".repeat(MAX_PIPELINE_NAME_BYTES + 1);
        for bad in ["", "Upper", "1st", "a b", "a/b", "ä", "__proto__", &long] {
            assert!(PipelineName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_may_be_urls_but_not_control_characters() {
        assert!(Key::new("https://example.com/ä?x=1").is_ok());
        assert_eq!(Key::new(""), Err(NameError::EmptyKey));
        assert_eq!(Key::new("a\0b"), Err(NameError::ControlCharacter('\0')));
        assert_eq!(Key::new(&"k".repeat(2_049)), Err(NameError::LongKey(2_049)));
    }

    #[test]
    fn a_key_stays_in_its_lane_and_keys_spread() {
        let lanes = 4;
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..100 {
            let key = Key::new(&format!("tenant-{n}")).unwrap();
            assert_eq!(key.lane(lanes), key.lane(lanes));
            seen.insert(key.lane(lanes));
        }
        assert_eq!(seen.len(), 4);
    }
}
