//! Submission: takes a stream of NDJSON lines, one batch a line, into the ledger as one run. Whole or not
//! at all: the run exists once the last line is in, and the answer to the client comes after that.

mod admission;
mod building;
mod lines;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use shared::config::PipelineConfig;
use shared::id::RunId;
use shared::name::{NameError, PipelineName};
use shared::payload::PayloadError;
use tokio::sync::mpsc;

use crate::ledger::{LedgerError, NewRun, Opened, SubmissionLedger};
use crate::notice::Notice;
use crate::run::{Priority, Run};
#[cfg(test)]
pub(crate) use admission::{NoPressure, NoWebhooks};
pub use admission::{Pressure, Retry, Room, WebhookCheck};
use building::{Building, Chunk};
use lines::{Lines, MAX_LINE_BYTES, read_line};

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
    /// Whom to tell when the run has finished.
    pub webhook: Option<String>,
}

/// A submission that was taken.
#[derive(Debug, PartialEq)]
pub enum Accepted {
    /// A new run.
    New(Run),
    /// The run that the same submission gave before.
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
    /// The key belongs to a run that was submitted otherwise.
    #[error(
        "the idempotency key belongs to run {0}, which had other lines, or another pipeline, priority or webhook"
    )]
    Conflict(RunId),
    /// The key belongs to a submission that is still under way.
    #[error("a submission with this idempotency key is under way: try again")]
    UnderWay,
    /// Too much is waiting already.
    #[error(
        "{pending} batches are pending and {under_way} are being submitted, {limit} are allowed: try again later"
    )]
    QueueFull {
        /// Over all runs.
        pending: u64,
        /// Of this submission and others.
        under_way: u64,
        /// By config.
        limit: u64,
    },
    /// Something else cannot take more.
    #[error("nothing is taken now: {}", .0.reason)]
    Backpressure(Retry),
    /// The address may not be told about a run.
    #[error("the webhook {url:?} is not allowed: {problem}")]
    Webhook {
        /// As asked for.
        url: String,
        /// Why not.
        problem: String,
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
#[derive(Clone)]
pub struct SubmissionStage {
    /// Where runs are recorded.
    pub ledger: Arc<dyn SubmissionLedger>,
    /// What is configured.
    pub pipelines: BTreeMap<PipelineName, PipelineConfig>,
    /// How many batches may be pending.
    pub room: Room,
    /// What else may have to say no.
    pub pressure: Arc<dyn Pressure>,
    /// Which webhooks are allowed.
    pub webhooks: Arc<dyn WebhookCheck>,
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
}

impl SubmissionStage {
    /// Takes the whole stream, or nothing.
    pub async fn submit<E: std::fmt::Display>(
        &self,
        submission: Submission,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Accepted, SubmissionError> {
        let pipeline = self.pipeline(&submission.pipeline)?;
        submission
            .idempotency_key
            .as_deref()
            .map_or(Ok(()), check_idempotency_key)?;
        self.check_webhook(submission.webhook.as_deref())?;
        if let Some(retry) = self.pressure.refuse() {
            return Err(SubmissionError::Backpressure(retry));
        }
        let run = NewRun {
            id: RunId::generate(),
            pipeline: pipeline.clone(),
            priority: submission.priority,
            idempotency_key: submission.idempotency_key,
            webhook: submission.webhook,
            created_at: Timestamp::now(),
        };
        // From here on, whoever drops this future (a client that goes away) leaves nothing half done.
        let mut building = Building::new(self.ledger.clone(), run.id, self.room.nothing());
        match self.ledger.open_run(&run).await? {
            Opened::New => {}
            Opened::Known {
                run: before,
                digest,
            } => {
                return recognise(*before, &digest, Lines::of(&run), body).await;
            }
        }
        match self
            .take_lines(&mut building, &pipeline, Lines::of(&run), body)
            .await
        {
            Ok(digest) => self.accept(building, digest).await,
            Err(error) => {
                building.abandon().await;
                Err(error)
            }
        }
    }

    /// In a task of its own, so that a run that was accepted is also announced when nobody waits for the
    /// answer any more.
    async fn accept(
        &self,
        building: Building,
        digest: [u8; 32],
    ) -> Result<Accepted, SubmissionError> {
        let notices = self.notices.clone();
        let accepting = tokio::spawn(async move {
            let run = building.accept(digest).await?;
            tracing::info!(run.id = %run.run, pipeline = %run.pipeline, batches = run.batches.accepted, "run accepted");
            metrics::counter!("tidegate_accepted_total").increment(run.batches.accepted);
            // Only a stopping coordinator has no dispatcher; the next one reads the ledger.
            let _ = notices.send(Notice::Accepted(run.run)).await;
            Ok(Accepted::New(run))
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

    fn check_webhook(&self, url: Option<&str>) -> Result<(), SubmissionError> {
        let Some(url) = url else { return Ok(()) };
        let refused = |problem| SubmissionError::Webhook {
            url: url.chars().take(100).collect(),
            problem,
        };
        self.webhooks.check(url).map_err(refused)
    }

    /// Reads lines into the ledger, one chunk while the one before is written, and gives the digest of all
    /// of them. When it returns well, every chunk is in or about to be.
    async fn take_lines<E: std::fmt::Display>(
        &self,
        building: &mut Building,
        pipeline: &PipelineName,
        mut lines: Lines,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<[u8; 32], SubmissionError> {
        let mut chunk = Chunk::default();
        let mut empty = true;
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
                if let Some(batch) = read_line(&line, pipeline, due).map_err(at)? {
                    empty = false;
                    chunk.push(batch);
                    if chunk.is_full() {
                        self.append(building, &mut chunk).await?;
                    }
                }
            }
            if ended {
                break;
            }
        }
        if empty {
            return Err(SubmissionError::Empty);
        }
        self.append(building, &mut chunk).await?;
        Ok(lines.digest())
    }

    async fn append(
        &self,
        building: &mut Building,
        chunk: &mut Chunk,
    ) -> Result<(), SubmissionError> {
        let batches = chunk.take();
        if batches.is_empty() {
            return Ok(());
        }
        shared::failpoint::reach("c.submit.parsed");
        let count = batches.len() as u64;
        self.room
            .reserve(&*self.ledger, building.reserved(), count)
            .await?;
        Ok(building.append(batches).await?)
    }
}

/// The key is known: the same submission gives the same run.
async fn recognise<E: std::fmt::Display>(
    run: Run,
    digest: &[u8],
    mut lines: Lines,
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<Accepted, SubmissionError> {
    if digest.is_empty() {
        return Err(SubmissionError::UnderWay);
    }
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

/// Whether it may be one.
///
/// # Errors
/// [`SubmissionError::IdempotencyKey`] otherwise.
pub fn check_idempotency_key(key: &str) -> Result<(), SubmissionError> {
    let fits = (1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&key.len());
    if fits && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(SubmissionError::IdempotencyKey)
    }
}

#[cfg(test)]
mod tests;
