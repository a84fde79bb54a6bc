//! Submission: takes a stream of NDJSON lines, one batch a line, into the ledger as one run. Whole or not
//! at all: the run exists once the last line is in, and the answer to the client comes after that.

mod admission;
mod building;
mod lines;
mod reading;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use shared::config::PipelineConfig;
use shared::id::RunId;
use shared::name::{NameError, PipelineName};
use shared::payload::PayloadError;
use tokio::sync::mpsc;

use crate::ledger::{KnownRun, LedgerError, NewBatch, NewRun, Opened, SubmissionLedger};
use crate::notice::Notice;
use crate::run::{Priority, Run};
use admission::Reserved;
#[cfg(test)]
pub(crate) use admission::{NoPressure, NoWebhooks};
pub use admission::{Pressure, Retry, Room, WebhookCheck};
use building::{Building, persistently};
use lines::MAX_LINE_BYTES;
use reading::Reading;

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
            pipeline,
            priority: submission.priority,
            idempotency_key: submission.idempotency_key,
            webhook: submission.webhook,
            created_at: Timestamp::now(),
        };
        let mut reading = Reading::new(body, &run);
        let chunk = reading.chunk().await?;
        if chunk.is_full() {
            return self.build(run, chunk.batches(), reading).await;
        }
        let batches = chunk.batches();
        if batches.is_empty() {
            return Err(SubmissionError::Empty);
        }
        let mut reserved = self.room.nothing();
        match self.reserve(&mut reserved, &batches).await {
            Ok(()) => {
                self.take(run, batches, reserved, reading.digest().await?)
                    .await
            }
            // A run that is there already needs no room.
            Err(SubmissionError::QueueFull { .. }) if run.idempotency_key.is_some() => {
                drop(reserved);
                self.build(run, batches, reading).await
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a run that one chunk holds, in one transaction. In a task of its own, so that a run that was
    /// accepted is also announced when nobody waits for the answer any more.
    async fn take(
        &self,
        run: NewRun,
        batches: Vec<NewBatch>,
        reserved: Reserved,
        digest: [u8; 32],
    ) -> Result<Accepted, SubmissionError> {
        let (ledger, notices) = (self.ledger.clone(), self.notices.clone());
        in_a_task(async move {
            shared::failpoint::reach("c.ledger.before_commit");
            let taken = persistently(|| ledger.take(&run, &batches, &digest)).await?;
            shared::failpoint::reach("c.ledger.committed");
            drop(reserved);
            match taken {
                Opened::New(run) => Ok(announce(run, &notices).await),
                // Its answer was lost, and it was asked again.
                Opened::Known(known) if known.run.run == run.id => {
                    Ok(announce(*known.run, &notices).await)
                }
                Opened::Known(known) => recognise(known, &digest),
            }
        })
        .await
    }

    /// Takes a run chunk by chunk: one goes into the ledger while the next one is read.
    async fn build<E: std::fmt::Display>(
        &self,
        run: NewRun,
        first: Vec<NewBatch>,
        mut reading: Reading<impl Stream<Item = Result<Bytes, E>> + Unpin>,
    ) -> Result<Accepted, SubmissionError> {
        // From here on, whoever drops this future (a client that goes away) leaves nothing half done.
        let mut building = Building::new(self.ledger.clone(), run.id, self.room.nothing());
        match self.ledger.open_run(&run).await? {
            Opened::New(()) => {}
            Opened::Known(known) => return recognise(known, &reading.digest().await?),
        }
        match self.append_all(&mut building, first, &mut reading).await {
            Ok(()) => self.accept(building, reading.digest().await?).await,
            Err(error) => {
                building.abandon().await;
                Err(error)
            }
        }
    }

    /// When it returns well, every chunk is in or about to be.
    async fn append_all<E: std::fmt::Display>(
        &self,
        building: &mut Building,
        first: Vec<NewBatch>,
        reading: &mut Reading<impl Stream<Item = Result<Bytes, E>> + Unpin>,
    ) -> Result<(), SubmissionError> {
        let mut batches = first;
        while !batches.is_empty() {
            self.reserve(building.reserved(), &batches).await?;
            building.append(batches).await?;
            batches = reading.chunk().await?.batches();
        }
        Ok(())
    }

    async fn reserve(
        &self,
        reserved: &mut Reserved,
        batches: &[NewBatch],
    ) -> Result<(), SubmissionError> {
        shared::failpoint::reach("c.submit.parsed");
        let count = batches.len() as u64;
        self.room.reserve(&*self.ledger, reserved, count).await
    }

    async fn accept(
        &self,
        building: Building,
        digest: [u8; 32],
    ) -> Result<Accepted, SubmissionError> {
        let notices = self.notices.clone();
        in_a_task(async move { Ok(announce(building.accept(digest).await?, &notices).await) }).await
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
}

/// Finishes what was begun, whether or not anybody waits for it.
async fn in_a_task(
    work: impl Future<Output = Result<Accepted, SubmissionError>> + Send + 'static,
) -> Result<Accepted, SubmissionError> {
    let finished = tokio::spawn(work).await;
    finished.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

async fn announce(run: Run, notices: &mpsc::Sender<Notice>) -> Accepted {
    tracing::info!(run.id = %run.run, pipeline = %run.pipeline, batches = run.batches.accepted, "run accepted");
    metrics::counter!("tidegate_accepted_total").increment(run.batches.accepted);
    // Only a stopping coordinator has no dispatcher; the next one reads the ledger.
    let _ = notices.send(Notice::Accepted(run.run)).await;
    Accepted::New(run)
}

/// The key is known: the same submission gives the same run.
fn recognise(known: KnownRun, digest: &[u8; 32]) -> Result<Accepted, SubmissionError> {
    let KnownRun {
        run,
        digest: of_run,
    } = known;
    if of_run.is_empty() {
        Err(SubmissionError::UnderWay)
    } else if of_run == digest {
        Ok(Accepted::Before(*run))
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
