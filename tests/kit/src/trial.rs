//! A handler alone: batches in, what a worker would make of them out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use shared::batch::Batch;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};
use shared::outcome::Outcome;
use shared::presence::Progress;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use worker::commit;
use worker::cursor::{Cursor, Cursors};
use worker::handler::Rows;
use worker::holding::Holding;
use worker::permits::{Permits, Unlimited};
use worker::process::{Processed, process};
use worker::registry::Served;
use worker::sink::SinkError;
use worker::threads::HandlerThreads;
use worker::{Handler, async_trait};

/// A handler that is tried out. What its batches have besides a payload can be changed between two of them.
#[derive(Clone)]
#[must_use = "nothing is tried before a batch is given"]
pub struct Trial {
    served: Served,
    key: Key,
    attempt: u32,
    permits: Arc<dyn Permits>,
    cancel_after: Option<Duration>,
    found: Option<Box<RawValue>>,
}

/// What came of one batch.
#[derive(Debug)]
pub struct Tried {
    /// What would be stored, as JSON.
    pub rows: Vec<Box<RawValue>>,
    /// What would be reported.
    pub outcome: Outcome,
    /// How far it said that it had come, last.
    pub progress: Option<Progress>,
    /// The cursor that it saved last.
    pub cursor: Option<Box<RawValue>>,
    /// How long it took, by tokio's clock.
    pub took: Duration,
}

impl Trial {
    /// With leave for every call, a deadline of 5 minutes, the default key, first attempts.
    pub fn of(handler: impl Handler) -> Self {
        Self {
            served: Served::unstored(Arc::new(handler), Duration::from_mins(5)),
            key: Key::default(),
            attempt: 1,
            permits: Unlimited::shared(),
            cancel_after: None,
            found: None,
        }
    }

    /// Whose work it is.
    ///
    /// # Panics
    /// When there can be no such key.
    pub fn key(mut self, key: &str) -> Self {
        self.key = Key::new(key).expect("a key that a batch can have");
        self
    }

    /// Which attempt it is.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// The cursor of an earlier attempt.
    ///
    /// # Panics
    /// When it cannot be written as JSON.
    pub fn cursor(mut self, cursor: &impl Serialize) -> Self {
        self.found = Some(to_raw_value(cursor).expect("a cursor that is JSON"));
        self
    }

    /// Longest run time of one batch. A handler that goes on has 3 s to end when it is told, as in a worker.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.served.deadline = deadline;
        self
    }

    /// Who gives leave for calls.
    pub fn permits(mut self, permits: &(impl Permits + Clone)) -> Self {
        self.permits = Arc::new(permits.clone());
        self
    }

    /// When the run is cancelled, counted from the start of each batch.
    pub fn cancel_after(mut self, time: Duration) -> Self {
        self.cancel_after = Some(time);
        self
    }

    /// Gives it one batch with this payload.
    ///
    /// # Panics
    /// When the payload is no JSON.
    pub async fn run(&self, payload: &impl Serialize) -> Tried {
        let batch = Batch {
            id: BatchId::generate(),
            run: RunId::generate(),
            pipeline: PipelineName::new("trial").expect("the name is well-formed"),
            key: self.key.clone(),
            attempt: Attempt::new(self.attempt),
            payload: to_raw_value(payload).expect("a payload that is JSON"),
        };
        let (id, holding, kept) = (batch.id, Holding::default(), Arc::new(Kept::default()));
        let _held = holding.hold(id);
        let stop = CancellationToken::new();
        let started = Instant::now();
        // In the test's runtime, so that its clock is the handler's.
        let threads = HandlerThreads::here();
        let processing = process(
            &threads,
            &self.served,
            batch.into(),
            Cursor::kept_in(kept.clone(), self.found.clone()),
            holding.reporter(id),
            self.permits.clone(),
            stop.cancelled(),
        );
        let cancelling = async {
            match self.cancel_after {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
            stop.cancel();
            std::future::pending::<()>().await;
        };
        let processed = tokio::select! {
            processed = processing => processed,
            () = cancelling => unreachable!("it only cancels"),
        };
        let took = started.elapsed();
        let (rows, outcome) = reported(processed);
        Tried {
            rows,
            outcome,
            progress: holding.progress().remove(&id),
            cursor: kept.lock().clone(),
            took,
        }
    }
}

/// The one cursor that a batch has.
#[derive(Debug, Default)]
struct Kept(Mutex<Option<Box<RawValue>>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Option<Box<RawValue>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Cursors for Kept {
    async fn cursor(&self, _: BatchId) -> Result<Option<Box<RawValue>>, SinkError> {
        Ok(self.lock().clone())
    }

    async fn save_cursor(
        &self,
        _: BatchId,
        _: Attempt,
        cursor: Box<RawValue>,
    ) -> Result<(), SinkError> {
        *self.lock() = Some(cursor);
        Ok(())
    }

    async fn forget_old_cursors(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// What would be stored, and what would be reported.
fn reported(processed: Processed) -> (Vec<Box<RawValue>>, Outcome) {
    let ended = match processed {
        Processed::Ended(ended) => ended,
        Processed::Stopped | Processed::NotStarted => {
            let reason = "cancelled".to_owned();
            return (Vec::new(), Outcome::Released { reason });
        }
    };
    let rows = match &ended {
        Ok(output) => match &output.rows {
            Rows::Json(rows) => rows.iter().map(raw).collect(),
            _ => Vec::new(),
        },
        Err(_) => Vec::new(),
    };
    (rows, commit::unstored(ended))
}

fn raw(row: &str) -> Box<RawValue> {
    RawValue::from_string(row.to_owned()).expect("rows are JSON")
}

impl Tried {
    /// The rows of a completed batch, read back.
    ///
    /// # Panics
    /// When it is not completed, or its rows have another shape.
    #[must_use]
    pub fn rows_as<T: DeserializeOwned>(&self) -> Vec<T> {
        assert!(
            matches!(self.outcome, Outcome::Completed(_)),
            "not completed: {:?}",
            self.outcome
        );
        let read = |row: &RawValue| {
            let read = serde_json::from_str(row.get());
            read.unwrap_or_else(|error| panic!("{error}: {row}"))
        };
        self.rows.iter().map(|row| read(row)).collect()
    }
}

#[cfg(test)]
mod tests {
    use worker::{BatchContext, HandlerError, LimitName, Output};

    use super::*;
    use crate::{Leave, ScriptedPermits};

    struct Obedient;

    #[async_trait]
    impl Handler for Obedient {
        type Input = String;

        async fn handle(&self, word: String, ctx: &BatchContext) -> Result<Output, HandlerError> {
            match word.as_str() {
                "rows" => Output::rows([(ctx.batch.key.as_str(), ctx.batch.attempt.number())]),
                "again" => Output::default().follow_up("next", &ctx.batch.key, &1),
                "nul" => Output::rows(["\0"]),
                "steps" => {
                    for step in ctx.cursor()?.unwrap_or(0_u64)..4 {
                        ctx.save_cursor(&(step + 1)).await?;
                        ctx.progress(step + 1, Some(4));
                    }
                    Err(HandlerError::retry("the last step is missing"))
                }
                "hang" => std::future::pending().await,
                "heed" => {
                    ctx.cancelled.cancelled().await;
                    Err(HandlerError::retry("told to stop"))
                }
                "call" => {
                    let limit = LimitName::new("calls").unwrap();
                    let permit = ctx.permit(&limit, 2).await?;
                    ctx.too_fast(&limit, permit, None);
                    Ok(Output::default())
                }
                other => panic!("{other}"),
            }
        }
    }

    const S: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_batch_has_what_it_was_given() {
        let trial = Trial::of(Obedient).key("tenant").attempt(3);
        let rows: Vec<(String, u32)> = trial.run(&"rows").await.rows_as();
        assert_eq!(rows, [("tenant".to_owned(), 3)]);
        match trial.run(&"again").await.outcome {
            Outcome::Completed(done) => {
                assert_eq!(done.follow_ups[0].pipeline.as_str(), "next");
                assert_eq!(done.follow_ups[0].key.as_str(), "tenant");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn how_far_it_came_is_known() {
        for trial in [Trial::of(Obedient), Trial::of(Obedient).cursor(&3)] {
            let tried = trial.run(&"steps").await;
            assert_eq!(tried.cursor.unwrap().get(), "4");
            let progress = tried.progress.unwrap();
            assert_eq!((progress.done, progress.total), (4, Some(4)));
        }
        let tried = Trial::of(Obedient).cursor(&4).run(&"steps").await;
        assert!(tried.cursor.is_none() && tried.progress.is_none());
    }

    #[tokio::test]
    async fn what_goes_wrong_is_what_a_worker_would_report() {
        let trial = Trial::of(Obedient);
        for (payload, said) in [
            ("no such word", "the handler panicked: no such word"),
            ("nul", "row 0 contains a NUL"),
        ] {
            match trial.run(&payload).await.outcome {
                Outcome::Retry { error, .. } | Outcome::Failed { error, .. } => {
                    assert!(error.contains(said), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        match trial.run(&["not", "one", "word"]).await.outcome {
            Outcome::Failed { reason, .. } => assert_eq!(reason, "bad_payload"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_and_cancellation_stop_a_handler() {
        let late = Trial::of(Obedient).deadline(30 * S).run(&"hang").await;
        match late.outcome {
            Outcome::Retry { error, .. } => assert!(error.contains("deadline of 30s"), "{error}"),
            other => panic!("{other:?}"),
        }
        let cancelled = Trial::of(Obedient).cancel_after(2 * S);
        let heeding = cancelled.run(&"heed").await;
        assert!(matches!(heeding.outcome, Outcome::Released { .. }));
        assert!(heeding.took < 3 * S, "{:?}", heeding.took);
        let deaf = cancelled.run(&"hang").await;
        assert!(matches!(deaf.outcome, Outcome::Released { .. }));
        assert!(deaf.took >= 4 * S, "{:?}", deaf.took);
    }

    #[tokio::test(start_paused = true)]
    async fn leave_is_given_as_the_test_says() {
        let permits = ScriptedPermits::new([
            Leave::Parked(60 * S),
            Leave::CoordinatorAway,
            Leave::After(9 * S),
        ]);
        let trial = Trial::of(Obedient).permits(&permits);
        match trial.run(&"call").await.outcome {
            Outcome::Throttled { after_ms, .. } => assert_eq!(after_ms, 60 * S),
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            trial.run(&"call").await.outcome,
            Outcome::Released { .. }
        ));
        for least in [9 * S, Duration::ZERO] {
            let called = trial.run(&"call").await;
            assert!(matches!(called.outcome, Outcome::Completed(_)));
            assert!(called.took >= least && called.took < least + S);
        }
        assert_eq!(permits.asked().len(), 4);
        assert_eq!(permits.asked()[0].n, 2);
        assert_eq!(permits.said().len(), 2);
    }
}
