//! Commit: rows and marker into the sink, the outcome confirmed by the broker, then the ack. In this order,
//! so that a crash at any point leaves a duplicate and never a loss.

use std::sync::Arc;
use std::time::Duration;

use shared::backoff::Backoff;
use shared::batch::Batch;
use shared::id::BatchId;
use shared::name::Instance;
use shared::outcome::{Completed, FollowUp, MAX_FOLLOW_UP_BYTES, Outcome, Report, printable_error};
use shared::payload;
use tokio::time::{Instant, sleep};

use crate::handler::{HandlerError, Output, Rows};
use crate::held::Held;
use crate::report::Reports;
use crate::sink::{Marker, Sink, SinkError};
use crate::slots::Slot;

/// How long a finished batch waits for a sink that is away before it is given back. Long enough for a
/// database to restart, short enough that the broker's consumer timeout is far.
const SINK_PATIENCE: Duration = Duration::from_secs(30);

/// What is needed to finish a batch.
pub struct Commit {
    /// Where results are stored.
    pub sink: Arc<dyn Sink>,
    /// Where outcomes are reported.
    pub reports: Reports,
    /// Who writes.
    pub writer: Instance,
}

/// A batch in this worker's hands.
#[derive(Debug)]
pub struct Work {
    /// Its delivery.
    pub held: Held,
    /// What it is.
    pub batch: Batch,
    /// Whether the broker had handed this attempt to somebody before.
    pub redelivered: bool,
    /// How long its handler ran, once it has.
    pub took: Option<Duration>,
}

/// The sink was away for longer than [`SINK_PATIENCE`]; the batch was given back.
#[derive(Debug, thiserror::Error)]
#[error("the sink is away: {0}")]
pub struct SinkAway(SinkError);

impl Commit {
    /// Finishes a batch whose handler ended: rows and marker, confirmed outcome, ack. The slot, where it has one
    /// of its own, is free for the next batch as soon as the rows are in.
    pub async fn finish(
        &self,
        work: Work,
        ended: Result<Output, HandlerError>,
        has_sink: bool,
        slot: Option<Slot<'_>>,
    ) -> Result<(), SinkAway> {
        let outcome = match ended {
            Ok(output) if has_sink => match self.store(&work.batch, output).await {
                Ok(outcome) => outcome,
                Err(away) => {
                    work.held.give_back().await;
                    return Err(away);
                }
            },
            Ok(output) => count_only(output),
            Err(error) => verdict(error),
        };
        drop(slot);
        self.report(work, outcome).await;
        Ok(())
    }

    /// Reports an outcome and acks once the broker has it.
    pub async fn report(&self, work: Work, outcome: Outcome) {
        let Work {
            held,
            batch,
            redelivered,
            took,
        } = work;
        let report = Report {
            batch: batch.id,
            run: batch.run,
            pipeline: batch.pipeline,
            attempt: batch.attempt,
            redelivered,
            took,
            outcome,
        };
        let outcome = report.outcome.word();
        let pipeline = report.pipeline.to_string();
        if self.reports.confirmed(&batch.key, report).await {
            metrics::counter!("tidegate_outcomes_total", "pipeline" => pipeline, "outcome" => outcome)
                .increment(1);
            shared::failpoint::reach("w.outcome.confirmed");
            held.ack();
        }
        // Otherwise the worker is stopping: the broker delivers again, and the marker tells the next one.
    }

    /// The outcome that was stored before, by whoever ran this batch then.
    pub async fn find(&self, batch: &Batch) -> Result<Option<Outcome>, SinkAway> {
        match self.patiently(|| self.sink.find(batch.id)).await {
            Ok(found) => Ok(found.map(Outcome::Completed)),
            Err(SinkError::Unavailable(error)) => Err(SinkAway(SinkError::Unavailable(error))),
            Err(error) => Ok(Some(refused(&error))),
        }
    }

    async fn store(&self, batch: &Batch, output: Output) -> Result<Outcome, SinkAway> {
        if let Err(problem) = check_follow_ups(&output.follow_ups) {
            return Ok(problem);
        }
        let completed = Completed {
            rows: output.rows.count(),
            statistics: output.statistics,
            follow_ups: output.follow_ups,
        };
        let marker = Marker {
            batch: batch.id,
            attempt: batch.attempt,
            writer: self.writer.clone(),
            completed,
        };
        let rows = Arc::new(output.rows);
        match self
            .patiently(|| self.sink.commit(marker.clone(), rows.clone()))
            .await
        {
            Ok(committed) => Ok(Outcome::Completed(committed.into_completed())),
            Err(error @ SinkError::Unavailable(_)) if error.is_about_the_rows() => {
                Ok(verdict(HandlerError::retry(error.to_string())))
            }
            Err(SinkError::Unavailable(error)) => Err(SinkAway(SinkError::Unavailable(error))),
            Err(error) => Ok(refused(&error)),
        }
    }

    /// Returns once the sink answers a question.
    pub async fn until_sink_answers(&self) {
        for failures in 1.. {
            match self.sink.find(BatchId::generate()).await {
                Err(SinkError::Unavailable(_)) => sleep(Backoff::RECONNECT.draw(failures)).await,
                _ => return,
            }
        }
    }

    /// Tries again while the sink is away, as long as patience lasts.
    async fn patiently<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, SinkError>
    where
        F: Future<Output = Result<T, SinkError>>,
    {
        let give_up = Instant::now() + SINK_PATIENCE;
        for failures in 1.. {
            match call().await {
                Err(error @ SinkError::Unavailable(_)) if Instant::now() < give_up => {
                    tracing::warn!(%error, failures, "the sink does not answer, trying again");
                    metrics::counter!("tidegate_sink_failures_total").increment(1);
                }
                other => return other,
            }
            sleep(Backoff::RECONNECT.draw(failures)).await;
        }
        unreachable!("the loop only ends by returning")
    }
}

/// The outcome of a handler whose rows are not stored.
#[must_use]
pub fn unstored(ended: Result<Output, HandlerError>) -> Outcome {
    match ended {
        Ok(output) => count_only(output),
        Err(error) => verdict(error),
    }
}

/// A pipeline without a sink: rows are counted and dropped.
fn count_only(output: Output) -> Outcome {
    let Output {
        rows,
        statistics,
        follow_ups,
    } = output;
    match check_follow_ups(&follow_ups) {
        Ok(()) => Outcome::Completed(Completed {
            rows: rows.count(),
            statistics,
            follow_ups,
        }),
        Err(problem) => problem,
    }
}

fn verdict(error: HandlerError) -> Outcome {
    match error {
        HandlerError::Retry { error, after } => Outcome::Retry {
            error: printable_error(&error),
            after_ms: after,
        },
        HandlerError::Throttled { reason, after } => Outcome::Throttled {
            reason: printable_error(&reason),
            after_ms: after,
        },
        HandlerError::CoordinatorAway => Outcome::Released {
            reason: "coordinator_away".to_owned(),
        },
        HandlerError::Fail { reason, error } => Outcome::Failed {
            reason: reason.to_owned(),
            error: printable_error(&error),
        },
    }
}

fn refused(error: &SinkError) -> Outcome {
    let reason = match error {
        SinkError::DamagedMarker { .. } => "damaged_marker",
        _ => "sink_refused",
    };
    Outcome::Failed {
        reason: reason.to_owned(),
        error: printable_error(&error.to_string()),
    }
}

/// Follow-ups become payloads: what may not be submitted may not be asked for either.
fn check_follow_ups(follow_ups: &[FollowUp]) -> Result<(), Outcome> {
    let fail = |error: String| {
        Err(Outcome::Failed {
            reason: "bad_follow_up".to_owned(),
            error,
        })
    };
    for (index, follow_up) in follow_ups.iter().enumerate() {
        if let Err(error) = payload::check(&follow_up.payload) {
            return fail(format!("follow-up {index}: {error}"));
        }
    }
    let bytes: usize = follow_ups.iter().map(FollowUp::bytes).sum();
    if bytes > MAX_FOLLOW_UP_BYTES {
        return fail(format!(
            "{bytes} bytes of follow-ups, at most {MAX_FOLLOW_UP_BYTES} are allowed: ask for fewer at once"
        ));
    }
    Ok(())
}

impl Rows {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Json(rows) => rows.len() as u64,
            Self::Slice(slice) => slice.rows.len() as u64,
        }
    }
}
