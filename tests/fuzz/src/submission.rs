//! A submission: NDJSON lines, in whatever pieces the network makes of them. The first two bytes of an input
//! say where it is cut.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use coordinator::ledger::{
    KnownRun, Ledger, LedgerError, NewBatch, NewRun, Opened, SubmissionLedger,
};
use coordinator::levels::SharedLevels;
use coordinator::run::{BatchCounts, Priority, Run, RunState};
use coordinator::submission::{Accepted, Room, Submission, SubmissionError, SubmissionStage};
use coordinator::webhooks::Receivers;
use serde_json::Value;
use shared::config::{PipelineConfig, WebhooksConfig};
use shared::id::RunId;
use shared::name::{Key, PipelineName};
use shared::payload;
use tokio::sync::mpsc;

use crate::RUNTIME;

/// More than an input can hold.
const ROOM: u64 = 1_000_000;

/// A line that was taken.
type Taken = (Key, Value);

/// However it is cut, a submission gives the same: all of its lines, or the same refusal and nothing.
pub fn run(input: &[u8]) {
    let (cuts, body) = input.split_at(input.len().min(2));
    let cut = pieces(u16::from_le_bytes([byte(cuts, 0), byte(cuts, 1)]), body);
    let whole = vec![Bytes::copy_from_slice(body)];
    RUNTIME.block_on(async {
        let taken = submit(whole.clone(), cut.clone()).await;
        assert_eq!(
            taken,
            submit(cut, whole).await,
            "it matters where a submission is cut"
        );
        if let Ok(taken) = taken {
            assert_eq!(taken, lines(body));
        }
    });
}

/// Submits under a key, and again, cut otherwise, and with a line more.
async fn submit(first: Vec<Bytes>, again: Vec<Bytes>) -> Result<Vec<Taken>, String> {
    let ledger = Arc::new(Memory::default());
    let submit = |pieces| submit_to(ledger.clone(), Some("key"), pieces);
    let run = match submit(first).await {
        Ok(Accepted::New(run)) => run,
        Ok(Accepted::Before(run)) => panic!("nothing was there before: {run:?}"),
        Err(error) => {
            let left = ledger.kept();
            assert!(
                left.run.is_none() && left.batches.is_empty(),
                "refused and kept"
            );
            return Err(error.to_string());
        }
    };
    let more = [
        again.clone(),
        vec![Bytes::from_static(b"\n{\"payload\":0}")],
    ]
    .concat();
    assert_eq!(
        submit(again).await.ok(),
        Some(Accepted::Before(run.clone()))
    );
    assert!(matches!(submit(more).await, Err(SubmissionError::Conflict(id)) if id == run.run));

    let kept = ledger.kept();
    assert_eq!(run.batches.accepted, kept.batches.len() as u64);
    let taken = kept.batches.iter().map(|batch| {
        payload::check(&batch.payload).expect("a payload that may be");
        let payload = serde_json::from_str(batch.payload.get()).expect("JSON");
        (batch.key.clone(), payload)
    });
    Ok(taken.collect())
}

async fn submit_to(
    ledger: Arc<dyn SubmissionLedger>,
    key: Option<&str>,
    pieces: Vec<Bytes>,
) -> Result<Accepted, SubmissionError> {
    let pipeline = PipelineName::new("p").expect("a name");
    let stage = SubmissionStage {
        ledger,
        pipelines: BTreeMap::from([(pipeline, PipelineConfig::default())]),
        room: Room::new(ROOM),
        pressure: Arc::new(SharedLevels::default()),
        webhooks: Arc::new(Receivers::new(&WebhooksConfig::default())),
        notices: mpsc::channel(1).0,
    };
    let submission = Submission {
        pipeline: "p".to_owned(),
        priority: Priority::Normal,
        idempotency_key: key.map(str::to_owned),
        webhook: None,
    };
    let pieces = pieces.into_iter().map(Ok::<_, Infallible>);
    stage
        .submit(submission, futures::stream::iter(pieces))
        .await
}

/// What is accepted can be stored in a real ledger, and comes back as it was.
pub async fn store(ledger: &Arc<dyn Ledger>, input: &[u8]) {
    let body = &input[input.len().min(2)..];
    let whole = vec![Bytes::copy_from_slice(body)];
    let run = match submit_to(ledger.clone(), None, whole).await {
        Ok(Accepted::New(run)) => run,
        Ok(Accepted::Before(run)) => panic!("nothing was there before: {run:?}"),
        Err(SubmissionError::Ledger(error)) => panic!("it cannot be stored: {error}"),
        Err(_) => return,
    };
    let most = u32::try_from(ROOM).expect("a small number");
    let batches = ledger.batches(run.run, None, None, most).await;
    let mut stored = Vec::new();
    for batch in batches.expect("batches can be read") {
        let detail = ledger.batch(batch.batch).await;
        let detail = detail.expect("a batch can be read").expect("it is there");
        let payload = serde_json::from_str(detail.payload.get()).expect("JSON");
        stored.push((detail.key, payload));
    }
    assert_eq!(stored, lines(body));
}

/// What the lines say, read in the plainest way. Only for a submission that was taken.
fn lines(body: &[u8]) -> Vec<Taken> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let read = |line: &[u8]| {
        let value: Value = serde_json::from_slice(line).expect("a line that was taken is JSON");
        let key = value.get("key").and_then(Value::as_str);
        let key = key.map_or_else(Key::default, |key| Key::new(key).expect("it was taken"));
        (key, value["payload"].clone())
    };
    lines.filter(|line| !line.is_empty()).map(read).collect()
}

/// Cuts by a small generator, so that two bytes can say everything.
fn pieces(seed: u16, body: &[u8]) -> Vec<Bytes> {
    let (mut state, mut rest) = (u32::from(seed) | 1 << 16, body);
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Mostly short, sometimes empty, at times everything.
        let longest = if state >> 28 == 0 { rest.len() } else { 40 };
        let length = (state >> 8) as usize % (longest + 1);
        let (piece, left) = rest.split_at(length.min(rest.len()));
        pieces.push(Bytes::copy_from_slice(piece));
        rest = left;
    }
    pieces
}

fn byte(bytes: &[u8], index: usize) -> u8 {
    bytes.get(index).copied().unwrap_or_default()
}

/// A ledger for one run.
#[derive(Default)]
struct Memory(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    run: Option<NewRun>,
    digest: Vec<u8>,
    batches: Vec<NewBatch>,
}

impl Memory {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nobody panicked")
    }
}

impl Kept {
    fn shown(&self, run: &NewRun) -> Run {
        let pending = self.batches.len() as u64;
        Run {
            run: run.id,
            pipeline: run.pipeline.clone(),
            state: RunState::Running,
            priority: run.priority,
            batches: BatchCounts {
                accepted: pending,
                pending,
                ..BatchCounts::default()
            },
            retries: 0,
            rows: 0,
            statistics: BTreeMap::new(),
            created_at: run.created_at,
            finished_at: None,
        }
    }
}

#[async_trait]
impl SubmissionLedger for Memory {
    async fn take(
        &self,
        run: &NewRun,
        batches: &[NewBatch],
        digest: &[u8; 32],
    ) -> Result<Opened<Run>, LedgerError> {
        if let Opened::Known(known) = self.open_run(run).await? {
            return Ok(Opened::Known(known));
        }
        self.append(run.id, batches).await?;
        self.accept(run.id, digest).await.map(Opened::New)
    }

    async fn open_run(&self, run: &NewRun) -> Result<Opened, LedgerError> {
        let mut kept = self.kept();
        if let Some(known) = &kept.run {
            let run = Box::new(kept.shown(known));
            let digest = kept.digest.clone();
            return Ok(Opened::Known(KnownRun { run, digest }));
        }
        kept.run = Some(run.clone());
        Ok(Opened::New(()))
    }

    async fn append(&self, _: RunId, batches: &[NewBatch]) -> Result<(), LedgerError> {
        self.kept().batches.extend_from_slice(batches);
        Ok(())
    }

    async fn accept(&self, _: RunId, digest: &[u8; 32]) -> Result<Run, LedgerError> {
        let mut kept = self.kept();
        kept.digest = digest.to_vec();
        let run = kept.run.clone().expect("it was opened");
        Ok(kept.shown(&run))
    }

    async fn abandon(&self, _: RunId) -> Result<(), LedgerError> {
        *self.kept() = Kept::default();
        Ok(())
    }

    async fn backlog(&self) -> Result<u64, LedgerError> {
        Ok(0)
    }
}

/// What clients send, and what some do.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let bodies: [&str; 6] = [
        "{\"key\":\"a\",\"payload\":{\"n\":1}}\n{\"payload\":[1,2.5,null]}\n",
        "\u{feff}{\"key\":\"a\",\"payload\":1}\r\n\r\n  \n{\"payload\":\"x\"}",
        "{\"payload\":\"\\u0000\"}\n",
        "{\"payload\":[[[[[[[[[[[[]]]]]]]]]]]]}\n{\"payload\":\"\\ud83d\\ude00 \\\"\"}",
        "{\"key\":\"\",\"payload\":0}\nno json\n",
        "\n",
    ];
    (7_u16..)
        .zip(bodies)
        .map(|(cuts, body)| [&cuts.to_le_bytes(), body.as_bytes()].concat())
        .collect()
}
