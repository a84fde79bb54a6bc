//! What a worker asks the owner of a lane, over `tidegate.ask`, and what it is told.
//!
//! Questions travel in groups, transient, and are answered through direct reply-to: an answer that is lost is
//! asked for again, so every question must be harmless to ask twice.

use std::time::Duration;

use jiff::Timestamp;
use lapin::BasicProperties;
use serde::{Deserialize, Serialize};

use crate::broker::TRANSIENT;
use crate::id::BatchId;
use crate::name::{Attempt, Instance, Key, LimitName, PipelineName};
use crate::wire::{microseconds, milliseconds, optional_milliseconds};

/// `type` of a message with questions.
pub const ASK_TYPE: &str = "tidegate.ask.v1";
/// `type` of a message with answers.
pub const ANSWER_TYPE: &str = "tidegate.answer.v1";
/// Most questions in one message.
pub const MAX_QUESTIONS_PER_MESSAGE: usize = 100;
/// How long an answer is waited for. What nobody has heard by then is dropped by the broker, so that a
/// coordinator that was held up does not answer those who have asked again since.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The body of a message with questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Questions {
    /// In the order in which they were asked.
    pub questions: Vec<Asked>,
}

/// One question, with the asker's number for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// What the answer will carry. Unique for one asking process.
    pub id: u64,
    /// The question.
    pub question: Question,
}

/// The body of a message with answers. Answers to one message may come in several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// In no order.
    pub answers: Vec<Answered>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// The number of the question.
    pub id: u64,
    /// The answer.
    pub answer: Answer,
}

/// What a worker wants to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// When may this call start? Asked twice, it takes two places in line, of which one stays empty.
    Permit(PermitRequest),
    /// No question: how a call ended, as far as limits are concerned. It gets no answer.
    Feedback(Feedback),
    /// A delivery was handed out before: what to do with it?
    Claim(ClaimRequest),
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Question::Permit`].
    Permit(PermitAnswer),
    /// To [`Question::Claim`].
    Claim(ClaimAnswer),
}

/// Asks for leave to make one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PermitRequest {
    /// On behalf of which pipeline.
    pub pipeline: PipelineName,
    /// The limits that the call falls under: leave is given by all of them or by none.
    pub wants: Vec<Want>,
    /// The longest wait that is worth while. A longer one takes no place in line.
    #[serde(with = "milliseconds", rename = "patience_ms")]
    pub patience: Duration,
}

/// One limit that a call falls under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Want {
    /// Which limit.
    pub limit: LimitName,
    /// Whose share of it. Only limits of scope `key` look at it.
    pub key: Key,
    /// How much of it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub n: u32,
}

/// When a call may start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PermitAnswer {
    /// After this wait. The place in line is taken, whether it is used or not.
    Granted {
        /// From when the question was answered: a span, because clocks differ.
        #[serde(with = "microseconds", rename = "after_us")]
        after: Duration,
    },
    /// Not within the patience that was asked with; no place in line is taken.
    Parked {
        /// Which limit, for a person.
        reason: String,
        /// When it is worth asking again: a span, because clocks differ.
        #[serde(with = "milliseconds", rename = "after_ms")]
        after: Duration,
        /// Set when a quota is used up: when that ends, by the coordinator's clock, for a person.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// The coordinator knows no such limit: its configuration is another one than the worker's.
    Unknown {
        /// Which limit.
        limit: LimitName,
    },
}

/// How a call ended, as far as these limits are concerned. Calls that broke on the way say nothing about
/// limits and are not reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// The limits that it says something about.
    pub about: Vec<About>,
    /// How long ago leave for the call was asked: a span, because clocks differ.
    #[serde(with = "milliseconds", rename = "asked_ago_ms")]
    pub asked_ago: Duration,
    /// How it ended.
    pub said: Said,
}

/// One limit that something is said about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Which limit.
    pub limit: LimitName,
    /// Whose share of it. Only limits of scope `key` look at it.
    pub key: Key,
}

/// What the limited service said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The call was within all limits.
    Accepted,
    /// Too fast.
    TooFast {
        /// The service's own wish for a pause, if it named one.
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "optional_milliseconds",
            rename = "retry_after_ms"
        )]
        retry_after: Option<Duration>,
        /// What a limit without a rate does when this is said again and again: then it is a quota that is
        /// used up, and the service has one error for both.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        persistent: Option<Pauses>,
    },
    /// A quota is used up.
    UsedUp(Pauses),
}

/// How long a quota that is used up is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pauses {
    /// The first time.
    #[serde(with = "milliseconds", rename = "first_ms")]
    pub first: Duration,
    /// When the first call after that pause meets the same again: then it is a longer quota.
    #[serde(with = "milliseconds", rename = "again_ms")]
    pub again: Duration,
}

/// Asks what to do with a delivery that was handed out before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// Which batch.
    pub batch: BatchId,
    /// Which attempt of it.
    pub attempt: Attempt,
    /// Who has it now.
    pub worker: Instance,
    /// Whether nothing else runs there now, so that [`ClaimAnswer::Alone`] is acted on at once. Only a worker
    /// that dies after that dies of this batch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
}

/// What to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimAnswer {
    /// Like any other.
    Run,
    /// With nothing else running in the same worker: if that dies, this batch is to blame. Ask again once
    /// nothing else runs.
    Alone,
    /// Nothing: the attempt is settled, or a later one is out. Ack it.
    Drop,
    /// Nothing: its run was cancelled. Report it as released, with the reason `cancelled`.
    Cancelled,
}

/// Why a message holds no questions or no answers.
#[derive(Debug, thiserror::Error)]
pub enum DecodeAskError {
    /// Another message type, or another major version.
    #[error("message type {0:?} is not {1:?}")]
    Type(String, &'static str),
    /// The body has another shape.
    #[error("the body cannot be read: {0}")]
    Body(#[from] serde_json::Error),
}

impl Questions {
    /// The AMQP properties that go with the body, but for the address of the answer.
    #[must_use]
    pub fn properties(message_id: &str) -> BasicProperties {
        transient_json(ASK_TYPE)
            .with_message_id(message_id.into())
            .with_correlation_id(message_id.into())
            .with_expiration(ANSWER_WITHIN.as_millis().to_string().into())
            .with_app_id("tidegate-worker".into())
    }

    /// Reads a delivery.
    pub fn decode(properties: &BasicProperties, body: &[u8]) -> Result<Self, DecodeAskError> {
        check_type(properties, ASK_TYPE)?;
        Ok(serde_json::from_slice(body)?)
    }
}

impl Answers {
    /// The AMQP properties that go with the body.
    #[must_use]
    pub fn properties(correlation_id: &str) -> BasicProperties {
        transient_json(ANSWER_TYPE)
            .with_correlation_id(correlation_id.into())
            .with_app_id("tidegate-coordinator".into())
    }

    /// Reads a delivery.
    pub fn decode(properties: &BasicProperties, body: &[u8]) -> Result<Self, DecodeAskError> {
        check_type(properties, ANSWER_TYPE)?;
        Ok(serde_json::from_slice(body)?)
    }
}

fn transient_json(kind: &str) -> BasicProperties {
    BasicProperties::default()
        .with_delivery_mode(TRANSIENT)
        .with_content_type("application/json".into())
        .with_type(kind.into())
}

fn check_type(properties: &BasicProperties, expected: &'static str) -> Result<(), DecodeAskError> {
    match properties.kind().as_ref().map_or("", |kind| kind.as_str()) {
        kind if kind == expected => Ok(()),
        kind => Err(DecodeAskError::Type(kind.to_owned(), expected)),
    }
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_one(n: &u32) -> bool {
    *n == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_and_answer_survives_the_wire() {
        let limit = LimitName::new("gsc.site").unwrap();
        let key = Key::new("sc-domain:example.com").unwrap();
        let second = Duration::from_secs(1);
        let pauses = Pauses {
            first: second,
            again: 2 * second,
        };
        let feedback = |said| {
            Question::Feedback(Feedback {
                about: vec![About {
                    limit: limit.clone(),
                    key: key.clone(),
                }],
                asked_ago: second,
                said,
            })
        };
        let all = [
            Question::Permit(PermitRequest {
                pipeline: PipelineName::new("gsc.slice").unwrap(),
                wants: vec![Want {
                    limit: limit.clone(),
                    key: key.clone(),
                    n: 1,
                }],
                patience: second,
            }),
            feedback(Said::Accepted),
            feedback(Said::TooFast {
                retry_after: Some(second),
                persistent: None,
            }),
            feedback(Said::TooFast {
                retry_after: None,
                persistent: Some(pauses),
            }),
            feedback(Said::UsedUp(pauses)),
            Question::Claim(ClaimRequest {
                batch: BatchId::generate(),
                attempt: Attempt::new(2),
                worker: Instance::from("w1".to_owned()),
                alone: true,
            }),
        ];
        let questions = Questions {
            questions: (0..)
                .zip(all)
                .map(|(id, question)| Asked { id, question })
                .collect(),
        };
        let body = serde_json::to_vec(&questions).unwrap();
        let decoded = Questions::decode(&Questions::properties("1"), &body).unwrap();
        assert_eq!(decoded, questions);

        let all = [
            Answer::Permit(PermitAnswer::Granted { after: second }),
            Answer::Permit(PermitAnswer::Parked {
                reason: "quota".into(),
                after: second,
                until: Some(Timestamp::UNIX_EPOCH),
            }),
            Answer::Permit(PermitAnswer::Unknown { limit }),
            Answer::Claim(ClaimAnswer::Alone),
        ];
        let answers = Answers {
            answers: (0..)
                .zip(all)
                .map(|(id, answer)| Answered { id, answer })
                .collect(),
        };
        let body = serde_json::to_vec(&answers).unwrap();
        let decoded = Answers::decode(&Answers::properties("1"), &body).unwrap();
        assert_eq!(decoded, answers);
    }

    #[test]
    fn unknown_fields_are_ignored_and_other_types_refused() {
        let body = br#"{"questions":[],"later":true}"#;
        assert!(Questions::decode(&Questions::properties("m"), body).is_ok());
        assert!(matches!(
            Answers::decode(&Questions::properties("m"), body),
            Err(DecodeAskError::Type(..))
        ));
    }
}
