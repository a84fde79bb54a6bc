//! A message on a work queue, as a worker takes it.

use lapin::types::AMQPValue;
use shared::batch::{Batch, DecodeError};
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};
use shared::outcome::MAX_ERROR_BYTES;
use shared::payload::MAX_PAYLOAD_BYTES;

use crate::message;

/// What was read is what was sent, and what cannot be read has a reason that a header can carry.
pub fn run(input: &[u8]) {
    let (properties, body) = message::read(input);
    match Batch::decode(&properties, body) {
        Ok(batch) => {
            assert!(batch.payload.get().len() <= MAX_PAYLOAD_BYTES);
            let again = Batch::decode(&batch.properties(1), batch.payload.get().as_bytes());
            let again = again.expect("what was read can be sent on");
            assert_eq!((again.id, again.run), (batch.id, batch.run));
            assert_eq!((&again.key, &again.pipeline), (&batch.key, &batch.pipeline));
            assert_eq!(again.attempt, batch.attempt);
            assert_eq!(again.payload.get(), batch.payload.get());
        }
        Err(error) => {
            let known = ["unsupported_version", "too_large", "undecodable"];
            assert!(known.contains(&error.reason()));
            let text = error.to_string();
            assert!(
                text.len() <= MAX_ERROR_BYTES,
                "{} bytes of error",
                text.len()
            );
            if let DecodeError::OtherVersion { ids, .. } = error {
                assert_eq!(Some(ids.id.to_string()), id_of(&properties));
            }
        }
    }
}

fn id_of(properties: &lapin::BasicProperties) -> Option<String> {
    let id = properties.message_id().as_ref()?;
    Some(id.as_str().parse::<BatchId>().ok()?.to_string())
}

/// What a coordinator sends, and what others might.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let batch = Batch {
        id: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("gsc.slice").expect("a name"),
        key: Key::new("sc-domain:example.com").expect("a key"),
        attempt: Attempt::new(1),
        payload: serde_json::value::RawValue::from_string("{\"day\":\"2026-02-10\"}".into())
            .expect("JSON"),
    };
    let body = batch.payload.get().as_bytes();
    let ours = batch.properties(1_770_000_000);
    let newer = ours.clone().with_type("tidegate.batch.v2".into());
    let mut headers = ours.headers().clone().unwrap_or_default();
    headers.insert(
        "x-tidegate-attempt".into(),
        AMQPValue::LongString("1".into()),
    );
    let stranger = ours.clone().with_headers(headers);
    vec![
        message::write(&ours, body),
        message::write(&newer, b"who knows"),
        message::write(&stranger, b"\"\\u0000\""),
    ]
}
