//! Submission: takes a stream of NDJSON lines, one batch a line, into the ledger as one run. Whole or not
//! at all: the run exists once the last line is in, and the answer to the client comes after that.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::config::PipelineConfig;
use shared::id::{BatchId, RunId};
use shared::name::{Key, NameError, PipelineName};
use shared::payload::{self, PayloadError};
use tokio::sync::mpsc;

use crate::ledger::{LedgerError, NewBatch, NewRun, Opened, SubmissionLedger};
use crate::notice::Notice;
use crate::run::{Priority, Run};

/// Longest line: the largest payload, its key, and JSON around them.
const MAX_LINE_BYTES: usize = payload::MAX_PAYLOAD_BYTES + 64 * 1024;
/// A chunk goes into the ledger at this many batches or bytes: one transaction each, small enough that
/// dispatch and settlement of others get their turn in between.
const CHUNK_BATCHES: usize = 2_000;
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Longest idempotency key, in bytes.
const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;

/// What a client wants to submit, besides the lines.
#[derive(Debug)]
pub struct Submission {
    /// The pipeline of all batches.
    pub pipeline: String,
    /// Which of a key's runs goes first.
    pub priority: Priority,
    /// The client's name for this submission.
    pub idempotency_key: Option<String>,
}

/// A submission that was taken.
#[derive(Debug, PartialEq)]
pub enum Accepted {
    /// A new run.
    New(Run),
    /// The run that the same key and lines gave before.
    Before(Run),
}

/// Why a submission was refused. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// No such pipeline.
    #[error("there is no pipeline {name:?}; there are {}", known.join(", "))]
    UnknownPipeline {
        /// As asked for.
        name: String,
        /// What is configured.
        known: Vec<String>,
    },
    /// A line is no batch.
    #[error("line {line}: {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// No line at all.
    #[error(
        "the submission holds no batch: send one JSON object a line, {{\"key\": …, \"payload\": …}}"
    )]
    Empty,
    /// The idempotency key is unusable.
    #[error(
        "the idempotency key must have 1 to {MAX_IDEMPOTENCY_KEY_BYTES} visible ASCII characters"
    )]
    IdempotencyKey,
    /// The key belongs to a run with other lines.
    #[error("the idempotency key belongs to run {0}, which had other lines")]
    Conflict(RunId),
    /// The key belongs to a submission that is still under way.
    #[error("a submission with this idempotency key is under way: try again")]
    UnderWay,
    /// Too much is waiting already.
    #[error("{pending} batches are pending, {limit} are allowed: try again later")]
    QueueFull {
        /// Over all runs.
        pending: u64,
        /// By config.
        limit: u64,
    },
    /// The client went away or sent something broken.
    #[error("the request body ended early: {0}")]
    Body(String),
    /// The ledger did not take it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Why a line is no batch.
#[derive(Debug, thiserror::Error)]
pub enum LineProblem {
    /// No JSON, or JSON of another shape.
    #[error("no batch: {0}")]
    Malformed(#[from] serde_json::Error),
    /// No UTF-8.
    #[error("no UTF-8 from byte {0} of the line on")]
    NotUtf8(usize),
    /// Over [`MAX_LINE_BYTES`].
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// A payload that may not be.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A key that may not be.
    #[error(transparent)]
    Key(#[from] NameError),
}

/// The stage.
pub struct SubmissionStage {
    /// Where runs are recorded.
    pub ledger: Arc<dyn SubmissionLedger>,
    /// What is configured.
    pub pipelines: BTreeMap<PipelineName, PipelineConfig>,
    /// Most batches pending over all runs.
    pub backlog_limit: u64,
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    key: Option<String>,
    payload: Box<RawValue>,
}

impl SubmissionStage {
    /// Takes the whole stream, or nothing.
    pub async fn submit<E: std::fmt::Display>(
        &self,
        submission: Submission,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Accepted, SubmissionError> {
        let pipeline = self.pipeline(&submission.pipeline)?;
        check_idempotency_key(submission.idempotency_key.as_deref())?;
        let pending = self.ledger.backlog().await?;
        let run = NewRun {
            id: RunId::generate(),
            pipeline: pipeline.clone(),
            priority: submission.priority,
            idempotency_key: submission.idempotency_key,
            webhook: None,
            created_at: Timestamp::now(),
        };
        // From here on, whoever drops this future (a client that goes away) leaves nothing half done.
        let abandon = AbandonOnDrop::new(self.ledger.clone(), run.id);
        match self.ledger.open_run(&run).await? {
            Opened::New => {}
            Opened::Known { run, digest } => return recognise(*run, &digest, body).await,
        }
        let room = self.backlog_limit.saturating_sub(pending);
        match self.take_lines(run.id, &pipeline, room, body).await {
            Ok(digest) => self.accept(run.id, digest, abandon).await,
            Err(error) => {
                abandon.now().await;
                Err(error)
            }
        }
    }

    /// In a task of its own, so that a run that was accepted is also announced when nobody waits for the
    /// answer any more.
    async fn accept(
        &self,
        run: RunId,
        digest: [u8; 32],
        abandon: AbandonOnDrop,
    ) -> Result<Accepted, SubmissionError> {
        let (ledger, notices) = (self.ledger.clone(), self.notices.clone());
        let accepting = tokio::spawn(async move {
            shared::failpoint::reach("c.ledger.before_commit");
            match ledger.accept(run, &digest).await {
                Ok(run) => {
                    shared::failpoint::reach("c.ledger.committed");
                    abandon.disarm();
                    tracing::info!(run.id = %run.run, pipeline = %run.pipeline, batches = run.batches.accepted, "run accepted");
                    metrics::counter!("tidegate_accepted_total").increment(run.batches.accepted);
                    // Only a stopping coordinator has no dispatcher; the next one reads the ledger.
                    let _ = notices.send(Notice::Accepted(run.run)).await;
                    Ok(Accepted::New(run))
                }
                Err(error) => {
                    abandon.now().await;
                    Err(error.into())
                }
            }
        });
        accepting
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn pipeline(&self, name: &str) -> Result<PipelineName, SubmissionError> {
        let known = || self.pipelines.keys().map(ToString::to_string).collect();
        PipelineName::new(name)
            .ok()
            .filter(|name| self.pipelines.contains_key(name))
            .ok_or_else(|| SubmissionError::UnknownPipeline {
                name: name.chars().take(100).collect(),
                known: known(),
            })
    }

    /// Reads lines into the ledger, chunk by chunk, and gives the digest of all of them.
    async fn take_lines<E: std::fmt::Display>(
        &self,
        run: RunId,
        pipeline: &PipelineName,
        room: u64,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<[u8; 32], SubmissionError> {
        let mut lines = Lines::default();
        let mut chunk = Chunk::default();
        let mut taken: u64 = 0;
        let due = Timestamp::now();
        loop {
            let piece = body
                .next()
                .await
                .transpose()
                .map_err(|e| SubmissionError::Body(e.to_string()))?;
            let ended = piece.is_none();
            lines.push(piece.as_deref().unwrap_or_default());
            while let Some((number, line)) = lines.next(ended)? {
                let at = |problem| SubmissionError::Line {
                    line: number,
                    problem,
                };
                let Some(batch) = read_line(&line, pipeline, due).map_err(at)? else {
                    continue;
                };
                taken += 1;
                if taken > room {
                    let limit = self.backlog_limit;
                    return Err(SubmissionError::QueueFull {
                        pending: limit - room,
                        limit,
                    });
                }
                chunk.push(batch);
                if chunk.is_full() {
                    shared::failpoint::reach("c.submit.parsed");
                    self.ledger.append(run, &chunk.take()).await?;
                }
            }
            if ended {
                break;
            }
        }
        if taken == 0 {
            return Err(SubmissionError::Empty);
        }
        if !chunk.batches.is_empty() {
            shared::failpoint::reach("c.submit.parsed");
            self.ledger.append(run, &chunk.take()).await?;
        }
        Ok(lines.digest())
    }
}

/// The key is known: the same lines give the same run.
async fn recognise<E: std::fmt::Display>(
    run: Run,
    digest: &[u8],
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<Accepted, SubmissionError> {
    if digest.is_empty() {
        return Err(SubmissionError::UnderWay);
    }
    let mut lines = Lines::default();
    while let Some(piece) = body.next().await {
        lines.push(&piece.map_err(|e| SubmissionError::Body(e.to_string()))?);
        while lines.next(false)?.is_some() {}
    }
    while lines.next(true)?.is_some() {}
    if lines.digest() == digest {
        Ok(Accepted::Before(run))
    } else {
        Err(SubmissionError::Conflict(run.run))
    }
}

fn check_idempotency_key(key: Option<&str>) -> Result<(), SubmissionError> {
    let usable = |key: &str| {
        (1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&key.len())
            && key.bytes().all(|b| b.is_ascii_graphic())
    };
    if key.is_none_or(usable) {
        Ok(())
    } else {
        Err(SubmissionError::IdempotencyKey)
    }
}

/// One line; `None` for a blank one.
fn read_line(
    line: &[u8],
    pipeline: &PipelineName,
    due: Timestamp,
) -> Result<Option<NewBatch>, LineProblem> {
    let text = std::str::from_utf8(line).map_err(|e| LineProblem::NotUtf8(e.valid_up_to() + 1))?;
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let Line { key, payload } = serde_json::from_str(text)?;
    payload::check(&payload)?;
    let key = key
        .as_deref()
        .map_or_else(|| Ok(Key::default()), Key::new)?;
    Ok(Some(NewBatch {
        id: BatchId::generate(),
        pipeline: pipeline.clone(),
        key,
        payload,
        due,
    }))
}

/// Cuts a byte stream into lines and hashes them, blank ones and line ends aside.
#[derive(Default)]
struct Lines {
    rest: BytesMut,
    /// How much of `rest` is known to hold no newline: long lines arrive in many pieces.
    searched: usize,
    number: usize,
    hasher: blake3::Hasher,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        const BOM: &[u8] = b"\xef\xbb\xbf";
        let first = self.number == 0 && self.rest.is_empty();
        self.rest.extend_from_slice(if first {
            bytes.strip_prefix(BOM).unwrap_or(bytes)
        } else {
            bytes
        });
    }

    /// The next whole line and its number; the last one needs no newline when the stream has ended.
    fn next(&mut self, ended: bool) -> Result<Option<(usize, Bytes)>, SubmissionError> {
        let newline = self.rest[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n');
        let searched = std::mem::replace(&mut self.searched, 0);
        let line = match newline {
            Some(end) => {
                let line = self.rest.split_to(searched + end);
                let _newline = self.rest.split_to(1);
                line
            }
            None if ended && !self.rest.is_empty() => self.rest.split(),
            None if self.rest.len() > MAX_LINE_BYTES => {
                return Err(SubmissionError::Line {
                    line: self.number + 1,
                    problem: LineProblem::TooLong,
                });
            }
            None => {
                self.searched = self.rest.len();
                return Ok(None);
            }
        };
        self.number += 1;
        if line.len() > MAX_LINE_BYTES {
            return Err(SubmissionError::Line {
                line: self.number,
                problem: LineProblem::TooLong,
            });
        }
        let content = line.trim_ascii();
        if !content.is_empty() {
            self.hasher.update(content);
            self.hasher.update(b"\n");
        }
        Ok(Some((self.number, line.freeze())))
    }

    fn digest(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }
}

/// Batches on their way into the ledger.
#[derive(Default)]
struct Chunk {
    batches: Vec<NewBatch>,
    bytes: usize,
}

impl Chunk {
    fn push(&mut self, batch: NewBatch) {
        self.bytes += batch.payload.get().len();
        self.batches.push(batch);
    }

    fn is_full(&self) -> bool {
        self.batches.len() >= CHUNK_BATCHES || self.bytes >= CHUNK_BYTES
    }

    fn take(&mut self) -> Vec<NewBatch> {
        self.bytes = 0;
        std::mem::take(&mut self.batches)
    }
}

/// Removes a half-submitted run when its request is dropped in the middle: the client went away.
struct AbandonOnDrop {
    ledger: Arc<dyn SubmissionLedger>,
    run: Option<RunId>,
}

impl AbandonOnDrop {
    fn new(ledger: Arc<dyn SubmissionLedger>, run: RunId) -> Self {
        Self {
            ledger,
            run: Some(run),
        }
    }

    fn disarm(mut self) {
        self.run = None;
    }

    async fn now(mut self) {
        if let Some(run) = self.run.take() {
            abandon(&*self.ledger, run).await;
        }
    }
}

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            let ledger = self.ledger.clone();
            // Not tracked: a restart removes what this could not.
            tokio::spawn(async move { abandon(&*ledger, run).await });
        }
    }
}

async fn abandon(ledger: &dyn SubmissionLedger, run: RunId) {
    if let Err(error) = ledger.abandon(run).await {
        tracing::error!(%error, run.id = %run, "cannot remove a refused run now; the next start will");
    }
}

#[cfg(test)]
#[path = "submission_tests.rs"]
mod tests;
