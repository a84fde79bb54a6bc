//! A batch on the wire, from dispatch to consume: the body *is* the payload, everything else is in
//! the message's properties, so that the RabbitMQ UI shows both readably and neither repeats the other.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::value::RawValue;

use crate::broker::PERSISTENT;
use crate::id::{BatchId, RunId};
use crate::name::{Attempt, Key, PipelineName};
use crate::payload;
use crate::signing::{BAD_SIGNATURE, SignatureError};

/// `type` of a batch message. The number is the major version: another one is never guessed at.
pub const BATCH_TYPE: &str = "tidegate.batch.v1";
/// What every version's `type` starts with.
const BATCH_TYPE_PREFIX: &str = "tidegate.batch.v";

const HEADER_ATTEMPT: &str = "x-tidegate-attempt";
const HEADER_KEY: &str = "x-tidegate-key";
const HEADER_PIPELINE: &str = "x-tidegate-pipeline";

/// One attempt of a batch, as the coordinator sends it and a worker receives it.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Which batch.
    pub id: BatchId,
    /// The run that it belongs to.
    pub run: RunId,
    /// What kind of work it is.
    pub pipeline: PipelineName,
    /// Whose work it is.
    pub key: Key,
    /// Which dispatch this is.
    pub attempt: Attempt,
    /// What to work on: JSON of the pipeline's own shape.
    pub payload: Box<RawValue>,
}

/// Who a message says it is, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchIds {
    /// Which batch.
    pub id: BatchId,
    /// The run that it belongs to.
    pub run: RunId,
    /// Which dispatch this is.
    pub attempt: Attempt,
}

/// Why a message is no batch that this worker can run.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The ids are fine, the version is another one: a newer worker can run it.
    #[error("message type {found:?} is not {BATCH_TYPE:?}: a worker of that version must run it")]
    OtherVersion {
        /// The `type` property.
        found: String,
        /// Whose attempt it is.
        ids: BatchIds,
    },
    /// A property is missing or unusable.
    #[error("no batch message: property {property} {problem}")]
    Property {
        /// Which AMQP property or header.
        property: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The body is no JSON.
    #[error("the body is not JSON: {0}")]
    Body(#[source] serde_json::Error),
    /// The body is JSON, and not allowed as a payload.
    #[error(transparent)]
    Payload(#[from] payload::PayloadError),
    /// Nothing in it is to be believed.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl DecodeError {
    /// One closed word for metrics and for the header of the dead message.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OtherVersion { .. } => "unsupported_version",
            Self::Payload(payload::PayloadError::TooLarge(_)) => "too_large",
            Self::Signature(_) => BAD_SIGNATURE,
            Self::Property { .. } | Self::Body(_) | Self::Payload(_) => "undecodable",
        }
    }
}

impl Batch {
    /// The AMQP properties that go with the payload. `timestamp_s` is seconds since 1970.
    #[must_use]
    pub fn properties(&self, timestamp_s: u64) -> BasicProperties {
        let mut headers = FieldTable::default();
        headers.insert(
            HEADER_ATTEMPT.into(),
            AMQPValue::LongUInt(self.attempt.number()),
        );
        headers.insert(HEADER_KEY.into(), long(self.key.as_str()));
        headers.insert(HEADER_PIPELINE.into(), long(self.pipeline.as_str()));
        persistent_json(BATCH_TYPE, timestamp_s)
            .with_message_id(self.id.to_string().into())
            .with_correlation_id(self.run.to_string().into())
            .with_app_id("tidegate-coordinator".into())
            .with_headers(headers)
    }

    /// Reads a delivery.
    pub fn decode(properties: &BasicProperties, body: &[u8]) -> Result<Self, DecodeError> {
        let ids = BatchIds::decode(properties)?;
        let kind = properties.kind().as_ref().map_or("", ShortString::as_str);
        if kind != BATCH_TYPE {
            return Err(if kind.starts_with(BATCH_TYPE_PREFIX) {
                DecodeError::OtherVersion {
                    found: kind.to_owned(),
                    ids,
                }
            } else {
                property("type", format!("is {kind:?}, not {BATCH_TYPE:?}"))
            });
        }
        if body.len() > payload::MAX_PAYLOAD_BYTES {
            return Err(payload::PayloadError::TooLarge(body.len()).into());
        }
        let key = text_header(properties, HEADER_KEY)?;
        let pipeline = text_header(properties, HEADER_PIPELINE)?;
        let payload: Box<RawValue> = serde_json::from_slice(body).map_err(DecodeError::Body)?;
        Ok(Self {
            id: ids.id,
            run: ids.run,
            attempt: ids.attempt,
            key: Key::new(key).map_err(|e| property(HEADER_KEY, e.to_string()))?,
            pipeline: PipelineName::new(pipeline)
                .map_err(|e| property(HEADER_PIPELINE, e.to_string()))?,
            payload,
        })
    }
}

impl BatchIds {
    /// Reads the ids alone, for a message whose body or version is not understood.
    pub fn decode(properties: &BasicProperties) -> Result<Self, DecodeError> {
        let attempt = header(properties, HEADER_ATTEMPT)
            .and_then(whole_number)
            .ok_or_else(|| property(HEADER_ATTEMPT, "is missing or no whole number".into()))?;
        Ok(Self {
            id: uuid_property("message_id", properties.message_id().as_ref())?,
            run: uuid_property("correlation_id", properties.correlation_id().as_ref())?,
            attempt: Attempt::new(attempt),
        })
    }
}

/// Properties that every durable Tidegate message has.
pub(crate) fn persistent_json(message_type: &str, timestamp_s: u64) -> BasicProperties {
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_type(message_type.into())
        .with_timestamp(timestamp_s)
}

fn property(property: &'static str, problem: String) -> DecodeError {
    DecodeError::Property { property, problem }
}

fn uuid_property<T: std::str::FromStr>(
    name: &'static str,
    value: Option<&ShortString>,
) -> Result<T, DecodeError> {
    let text = value.ok_or_else(|| property(name, "is missing".into()))?;
    let parsed = text.as_str().parse();
    parsed.map_err(|_| property(name, format!("is no UUID: {:.40?}", text.as_str())))
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn text_header<'a>(
    properties: &'a BasicProperties,
    name: &'static str,
) -> Result<&'a str, DecodeError> {
    let bytes = match header(properties, name) {
        Some(AMQPValue::LongString(text)) => text.as_bytes(),
        Some(AMQPValue::ShortString(text)) => text.as_str().as_bytes(),
        _ => return Err(property(name, "is missing or no text".into())),
    };
    std::str::from_utf8(bytes).map_err(|_| property(name, "is no UTF-8".into()))
}

/// A header that other AMQP clients may have written with any integer type.
fn whole_number(value: &AMQPValue) -> Option<u32> {
    match *value {
        AMQPValue::ShortShortInt(n) => n.try_into().ok(),
        AMQPValue::ShortShortUInt(n) => Some(n.into()),
        AMQPValue::ShortInt(n) => n.try_into().ok(),
        AMQPValue::ShortUInt(n) => Some(n.into()),
        AMQPValue::LongInt(n) => n.try_into().ok(),
        AMQPValue::LongUInt(n) => Some(n),
        AMQPValue::LongLongInt(n) => n.try_into().ok(),
        _ => None,
    }
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        Batch {
            id: BatchId::generate(),
            run: RunId::generate(),
            pipeline: PipelineName::new("hashes").unwrap(),
            key: Key::new("tenant-ä").unwrap(),
            attempt: Attempt::new(3),
            payload: RawValue::from_string(r#"[{"path":"/x"}]"#.into()).unwrap(),
        }
    }

    #[test]
    fn a_batch_survives_the_wire() {
        let sent = batch();
        let body = sent.payload.get().as_bytes();
        let received = Batch::decode(&sent.properties(1_700_000_000), body).unwrap();
        assert_eq!(received.id, sent.id);
        assert_eq!(received.run, sent.run);
        assert_eq!(received.pipeline, sent.pipeline);
        assert_eq!(received.key, sent.key);
        assert_eq!(received.attempt, sent.attempt);
        assert_eq!(received.payload.get(), sent.payload.get());
    }

    #[test]
    fn another_version_keeps_its_ids() {
        let sent = batch();
        let properties = sent.properties(0).with_type("tidegate.batch.v9".into());
        match Batch::decode(&properties, b"who knows") {
            Err(DecodeError::OtherVersion { found, ids }) => {
                assert_eq!(found, "tidegate.batch.v9");
                assert_eq!((ids.id, ids.attempt), (sent.id, sent.attempt));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn strangers_are_named_not_run() {
        let good = batch().properties(0);
        let cases: [(BasicProperties, &[u8], &str); 5] = [
            (BasicProperties::default(), b"{}", "undecodable"),
            (good.clone(), b"", "undecodable"),
            (good.clone(), b"{\"half\":", "undecodable"),
            (
                good.clone().with_type("order.created".into()),
                b"{}",
                "undecodable",
            ),
            (good.with_message_id("7".into()), b"{}", "undecodable"),
        ];
        for (properties, body, reason) in cases {
            assert_eq!(
                Batch::decode(&properties, body).unwrap_err().reason(),
                reason
            );
        }
        let huge = vec![b' '; payload::MAX_PAYLOAD_BYTES + 1];
        let error = Batch::decode(&batch().properties(0), &huge).unwrap_err();
        assert_eq!(error.reason(), "too_large");
    }
}
