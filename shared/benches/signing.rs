//! What signatures cost: nanoseconds a message for writing and reading it, signed and checked or not, in turns.
//! Prints one JSON line for a batch and one for a full message of outcomes.
//!
//! `cargo bench -p tidegate-shared --bench signing`
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use serde_json::json;
use serde_json::value::RawValue;
use shared::batch::Batch;
use shared::config::{SigningConfig, SigningMode};
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, Key, PipelineName};
use shared::outcome::{Completed, MAX_OUTCOMES_PER_MESSAGE, Outcome, Outcomes, Report};
use shared::signing::{Purpose, Signing};

const ROUNDS: usize = 9;
const MESSAGES: u32 = 20_000;
/// Bytes of a batch's payload, as in the other figures.
const PAYLOAD_BYTES: usize = 1024;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "0123456789abcdef".repeat(4)).unwrap();
    std::fs::write(folder.path().join("current"), "a").unwrap();
    let config = SigningConfig {
        mode: SigningMode::Require,
        keys_folder: Some(folder.path().to_owned()),
    };
    let (on, off) = (Signing::open(&config).unwrap(), Signing::default());
    let batch = batch();
    let through_batch = |signing: &Signing| {
        let body = batch.payload.get().as_bytes();
        let properties = sent(signing, Purpose::Work, batch.properties(1), body);
        let _ = black_box(Batch::decode(&properties, body).unwrap());
    };
    measure("batch", MESSAGES, through_batch, &on, &off);
    let outcomes = outcomes();
    let through_outcomes = |signing: &Signing| {
        let body = serde_json::to_vec(&outcomes).unwrap();
        let properties = Outcomes::properties("0198c5a8-7a7e-7000-8000-000000000001", 1);
        let properties = sent(signing, Purpose::Outcomes, properties, &body);
        let _ = black_box(Outcomes::decode(&properties, &body).unwrap());
    };
    let name = "100 outcomes";
    measure(name, MESSAGES / 100, through_outcomes, &on, &off);
}

/// Both sides' part of signing.
fn sent(
    signing: &Signing,
    purpose: Purpose,
    properties: BasicProperties,
    body: &[u8],
) -> BasicProperties {
    let signed = signing.sign(purpose, properties, body);
    signing.check(purpose, &signed, body).unwrap();
    signed
}

fn measure(message: &str, count: u32, through: impl Fn(&Signing), on: &Signing, off: &Signing) {
    let each = |signing| {
        let started = Instant::now();
        for _ in 0..count {
            through(signing);
        }
        started.elapsed() / count
    };
    let mut rounds: Vec<(Duration, Duration)> =
        (0..ROUNDS).map(|_| (each(off), each(on))).collect();
    rounds.sort_by_key(|(off, on)| on.saturating_sub(*off));
    let (without, with) = rounds[ROUNDS / 2];
    let line = json!({
        "figure": "signing", "message": message, "unit": "ns/message",
        "without": without.as_nanos(), "with": with.as_nanos(),
        "difference": with.saturating_sub(without).as_nanos(),
    });
    println!("{line}");
}

fn batch() -> Batch {
    let text = json!("x".repeat(PAYLOAD_BYTES - 2)).to_string();
    Batch {
        id: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("gsc.slice").unwrap(),
        key: Key::new("sc-domain:example.com").unwrap(),
        attempt: Attempt::new(1),
        payload: RawValue::from_string(text).unwrap(),
    }
}

fn outcomes() -> Outcomes {
    let report = |_| Report {
        batch: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("gsc.slice").unwrap(),
        attempt: Attempt::new(1),
        redelivered: false,
        took: Some(Duration::from_millis(12)),
        outcome: Outcome::Completed(Completed::default()),
    };
    Outcomes {
        worker: Instance::generate("worker"),
        reports: (0..MAX_OUTCOMES_PER_MESSAGE).map(report).collect(),
    }
}
