//! A worker's verdicts on the wire, from commit to settlement: many outcomes in one message.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::BasicProperties;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::batch::persistent_json;
use crate::id::{BatchId, RunId};
use crate::name::{Attempt, Instance, Key, PipelineName};
use crate::wire::{milliseconds, optional_milliseconds};

/// `type` of an outcomes message.
pub const OUTCOMES_TYPE: &str = "tidegate.outcomes.v1";
/// Most outcomes in one message: enough that a message's cost disappears, few enough to read in the UI.
pub const MAX_OUTCOMES_PER_MESSAGE: usize = 100;
/// A group is closed at this many bytes, even if it has fewer outcomes.
pub const MAX_OUTCOMES_BYTES: usize = 1024 * 1024;
/// Longest error text that is kept, in bytes.
pub const MAX_ERROR_BYTES: usize = 4096;
/// Most bytes of follow-ups in one outcome: one message must hold them, and RabbitMQ 4 refuses 16 MiB.
pub const MAX_FOLLOW_UP_BYTES: usize = 8 * 1024 * 1024;

/// Named counts that a handler reports, summed over a run: `api_calls`, `rows_written`, …
pub type Statistics = BTreeMap<String, u64>;

/// A worker's verdict on one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The work is done and, where the pipeline has a sink, stored.
    Completed(Completed),
    /// It failed in a way that may pass. Burns an attempt.
    Retry {
        /// What went wrong, for a person.
        error: String,
        /// The handler's own wish for a delay; otherwise the pipeline's backoff decides.
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "optional_milliseconds"
        )]
        after_ms: Option<Duration>,
    },
    /// A limited service said "not now". Burns no attempt.
    Throttled {
        /// Which limit, for a person.
        reason: String,
        /// How long to hold the batch back, from now: a span, because clocks differ.
        #[serde(with = "milliseconds")]
        after_ms: Duration,
    },
    /// It failed and would fail again: the batch is dead.
    Failed {
        /// A closed word where there is one (`permission_lost`, `bad_request`), else `failed`.
        reason: String,
        /// What went wrong, for a person.
        error: String,
    },
    /// Handed back without a verdict. Burns no attempt.
    Released {
        /// Why, in one closed word: `unsupported_version`, `unknown_pipeline`, `cancelled`.
        reason: String,
    },
}

impl Outcome {
    /// Which one it is, in one closed word, for counting.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Completed(_) => "completed",
            Self::Retry { .. } => "retry",
            Self::Throttled { .. } => "throttled",
            Self::Failed { .. } => "failed",
            Self::Released { .. } => "released",
        }
    }

    /// Bytes of its follow-ups: the only part of an outcome that can be large.
    #[must_use]
    pub fn follow_up_bytes(&self) -> usize {
        match self {
            Self::Completed(completed) => completed.follow_ups.iter().map(FollowUp::bytes).sum(),
            _ => 0,
        }
    }
}

/// What a completed batch leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// Rows that this batch stands for in the sink.
    #[serde(default)]
    pub rows: u64,
    /// What else was counted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub statistics: Statistics,
    /// Batches that it asks for, in the same run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub follow_ups: Vec<FollowUp>,
}

/// A batch that a completed batch asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FollowUp {
    /// Which pipeline runs it.
    pub pipeline: PipelineName,
    /// Whose work it is.
    pub key: Key,
    /// What to work on.
    pub payload: Box<RawValue>,
}

impl FollowUp {
    /// About what it takes on the wire: payload, names, and the JSON around them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const JSON_AROUND: usize = r#"{"pipeline":"","key":"","payload":},"#.len();
        self.payload.get().len()
            + self.pipeline.as_str().len()
            + self.key.as_str().len()
            + JSON_AROUND
    }
}

impl PartialEq for FollowUp {
    fn eq(&self, other: &Self) -> bool {
        (&self.pipeline, &self.key, self.payload.get())
            == (&other.pipeline, &other.key, other.payload.get())
    }
}

/// One verdict and whose it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which batch.
    pub batch: BatchId,
    /// Its run.
    pub run: RunId,
    /// Its pipeline, whose policy decides about retries.
    pub pipeline: PipelineName,
    /// Which attempt was made.
    pub attempt: Attempt,
    /// Whether the broker had handed this attempt to somebody before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redelivered: bool,
    /// How long the handler ran; `None` when it never did.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        rename = "took_ms",
        with = "optional_milliseconds"
    )]
    pub took: Option<Duration>,
    /// The verdict.
    pub outcome: Outcome,
}

/// The body of an outcomes message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcomes {
    /// Who reports.
    pub worker: Instance,
    /// What, in the order in which it was finished.
    pub reports: Vec<Report>,
}

/// Why a message holds no outcomes.
#[derive(Debug, thiserror::Error)]
pub enum DecodeOutcomesError {
    /// Another message type, or another major version.
    #[error("message type {0:?} is not {OUTCOMES_TYPE:?}")]
    Type(String),
    /// The body has another shape.
    #[error("the body holds no outcomes: {0}")]
    Body(#[from] serde_json::Error),
}

impl Outcomes {
    /// The AMQP properties that go with the body. `message_id` names the message alone.
    #[must_use]
    pub fn properties(message_id: &str, timestamp_s: u64) -> BasicProperties {
        persistent_json(OUTCOMES_TYPE, timestamp_s)
            .with_message_id(message_id.into())
            .with_app_id("tidegate-worker".into())
    }

    /// Reads a delivery.
    pub fn decode(properties: &BasicProperties, body: &[u8]) -> Result<Self, DecodeOutcomesError> {
        let kind = properties.kind().as_ref().map_or("", |kind| kind.as_str());
        if kind != OUTCOMES_TYPE {
            return Err(DecodeOutcomesError::Type(kind.to_owned()));
        }
        Ok(serde_json::from_slice(body)?)
    }
}

/// Cuts an error text to [`MAX_ERROR_BYTES`] and replaces what a terminal or a database would choke on.
#[must_use]
pub fn printable_error(text: &str) -> String {
    let clean = |c: char| {
        if c.is_control() && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    };
    // Cleaning makes a text longer, so it is cut before, to spare a flood, and after, to keep the promise.
    let start = &text[..text.floor_char_boundary(MAX_ERROR_BYTES)];
    let mut printable: String = start.chars().map(clean).collect();
    let room = MAX_ERROR_BYTES - '…'.len_utf8();
    if start.len() < text.len() || printable.len() > MAX_ERROR_BYTES {
        printable.truncate(printable.floor_char_boundary(room));
        printable.push('…');
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Outcome) -> Report {
        Report {
            batch: BatchId::generate(),
            run: RunId::generate(),
            pipeline: PipelineName::new("hashes").unwrap(),
            attempt: Attempt::new(1),
            redelivered: false,
            took: Some(Duration::from_millis(12)),
            outcome,
        }
    }

    #[test]
    fn every_outcome_survives_the_wire() {
        let follow_up = FollowUp {
            pipeline: PipelineName::new("gsc.slice").unwrap(),
            key: Key::default(),
            payload: RawValue::from_string("{\"day\":1}".into()).unwrap(),
        };
        let completed = Completed {
            rows: 3,
            statistics: Statistics::from([("api_calls".into(), 2)]),
            follow_ups: vec![follow_up],
        };
        let second = Duration::from_secs(1);
        let outcomes = Outcomes {
            worker: Instance::from("w1".to_owned()),
            reports: vec![
                report(Outcome::Completed(completed)),
                report(Outcome::Retry {
                    error: "reset".into(),
                    after_ms: None,
                }),
                report(Outcome::Retry {
                    error: "busy".into(),
                    after_ms: Some(second),
                }),
                report(Outcome::Throttled {
                    reason: "quota".into(),
                    after_ms: second,
                }),
                report(Outcome::Failed {
                    reason: "failed".into(),
                    error: "no".into(),
                }),
                report(Outcome::Released {
                    reason: "unsupported_version".into(),
                }),
            ],
        };
        let body = serde_json::to_vec(&outcomes).unwrap();
        let properties = Outcomes::properties("m1", 0);
        assert_eq!(Outcomes::decode(&properties, &body).unwrap(), outcomes);
    }

    #[test]
    fn unknown_fields_are_ignored_and_other_types_refused() {
        let body = br#"{"worker":"w","reports":[],"later":true}"#;
        assert!(Outcomes::decode(&Outcomes::properties("m", 0), body).is_ok());
        let other = Outcomes::properties("m", 0).with_type("tidegate.outcomes.v2".into());
        assert!(matches!(
            Outcomes::decode(&other, body),
            Err(DecodeOutcomesError::Type(_))
        ));
    }

    #[test]
    fn error_texts_are_bounded_and_printable() {
        let text = printable_error(&"ä\u{1b}[31m".repeat(4000));
        assert!(text.len() <= MAX_ERROR_BYTES && text.ends_with('…'));
        assert!(!text.contains('\u{1b}'));
        assert_eq!(printable_error("plain\ntext"), "plain\ntext");
    }
}
