//! Commit: rows and marker into the sink, the outcome confirmed by the broker, then the ack. In this order,
//! so that a crash at any point leaves a duplicate and never a loss.

use std::sync::Arc;
use std::time::Duration;

use shared::batch::Batch;
use shared::config::SinkChoice;
use shared::name::Instance;
use shared::outcome::{Completed, FollowUp, MAX_FOLLOW_UP_BYTES, Outcome, Report, printable_error};
use shared::payload;

use crate::collect::BAD_ROW;
use crate::handler::{HandlerError, Output, Rows};
use crate::held::Held;
use crate::report::Reports;
use crate::sink::entrance::Entrance;
use crate::sink::{Marker, SinkError};
use crate::sinks::Sinks;
use crate::slots::Slot;

/// What is needed to finish a batch.
pub struct Commit {
    /// Where results are stored.
    pub sinks: Sinks,
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
    pub batch: Arc<Batch>,
    /// Whether the broker had handed this attempt to somebody before.
    pub redelivered: bool,
    /// How long its handler ran, once it has.
    pub took: Option<Duration>,
}

/// The sink was away for longer than its [`Entrance`] waits; the batch was given back.
#[derive(Debug, thiserror::Error)]
#[error("the sink is away: {0}")]
pub struct SinkAway(SinkError);

impl Commit {
    /// Finishes a batch whose handler ended: rows and marker, confirmed outcome, ack. The slot, where it has one
    /// of its own, is free for the next batch as soon as the sink has room for the rows.
    pub async fn finish(
        &self,
        work: Work,
        ended: Result<Output, HandlerError>,
        sink: &SinkChoice,
        slot: Option<Slot<'_>>,
    ) -> Result<(), SinkAway> {
        let outcome = match (ended, self.sinks.get(sink)) {
            (Ok(output), Some(sink)) => {
                // What a sink needs is much, and a batch without one should not carry it.
                let storing = Box::pin(self.store(sink, &work.batch, output, slot));
                match storing.await {
                    Ok(outcome) => outcome,
                    Err(away) => {
                        work.held.give_back().await;
                        return Err(away);
                    }
                }
            }
            (Ok(output), None) => {
                drop(slot);
                count_only(output)
            }
            (Err(error), _) => {
                drop(slot);
                verdict(error)
            }
        };
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
            pipeline: batch.pipeline.clone(),
            attempt: batch.attempt,
            redelivered,
            took,
            outcome,
        };
        let lane = self.reports.lane(&batch.key);
        // Its payload may be large, and is not needed any more.
        drop(batch);
        if self.reports.confirmed(lane, report).await {
            shared::failpoint::reach("w.outcome.confirmed");
            held.ack();
        }
        // Otherwise the worker is stopping: the broker delivers again, and the marker tells the next one.
    }

    /// The outcome that was stored before, by whoever ran this batch then.
    pub async fn find(
        &self,
        batch: &Batch,
        sink: &SinkChoice,
    ) -> Result<Option<Outcome>, SinkAway> {
        let Some(sink) = self.sinks.get(sink) else {
            return Ok(None);
        };
        match sink.find(batch.id).await {
            Ok(found) => Ok(found.map(Outcome::Completed)),
            Err(SinkError::Unavailable(error)) => Err(SinkAway(SinkError::Unavailable(error))),
            Err(error) => Ok(Some(refused(&error))),
        }
    }

    async fn store(
        &self,
        sink: &Entrance,
        batch: &Batch,
        output: Output,
        slot: Option<Slot<'_>>,
    ) -> Result<Outcome, SinkAway> {
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
            batch_key: output.batch_key,
        };
        let rows = Arc::new(output.rows);
        // The bound of memory: results that wait to be stored take room, and without room a slot. So there are never
        // more of them than the sink's `bytes` and one a slot.
        let _room = sink.room(&rows).await;
        drop(slot);
        match sink.commit(marker, rows).await {
            Ok(committed) => Ok(Outcome::Completed(committed.into_completed())),
            Err(error @ SinkError::Unavailable(_)) if error.is_about_the_rows() => {
                Ok(verdict(HandlerError::retry(error.to_string())))
            }
            Err(SinkError::Unavailable(error)) => Err(SinkAway(SinkError::Unavailable(error))),
            Err(error) => Ok(refused(&error)),
        }
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
        ..
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
        SinkError::Unfit(_) => BAD_ROW,
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
            Self::Copy(rows) => rows.count() as u64,
            Self::Slice(slice) => slice.rows.len() as u64,
        }
    }

    /// About how much memory they take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        /// What a row of a slice takes beside its texts.
        const ROW: usize = 64;
        let bytes = match self {
            Self::None => 0,
            Self::Json(rows) => rows.bytes(),
            Self::Copy(rows) => rows.bytes(),
            Self::Slice(slice) => slice.rows.text_bytes() + slice.rows.len() * ROW,
        };
        bytes as u64
    }
}
