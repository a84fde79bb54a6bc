//! Process: runs the handler on one batch, under its deadline, and turns every way to end into a verdict.
//! A panic or a hang of one batch stays that batch's.
//!
//! The handler runs on [threads of its own](crate::threads), its deadline is watched here, where no handler can
//! block anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::batch::Batch;
use tokio::task::JoinError;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::cursor::Cursor;
use crate::handler::{BatchContext, HandlerError, Output};
use crate::holding::Reporter;
use crate::permits::Permits;
use crate::registry::Served;
use crate::threads::{Dropped, HandlerThreads};

/// How a handler ended.
#[derive(Debug)]
pub enum Processed {
    /// It said something.
    Ended(Result<Output, HandlerError>),
    /// It was stopped before it could: the batch is to be given back.
    Stopped,
    /// It never had a thread, because others block them: the batch is to be given back.
    NotStarted,
}

/// How long a handler that was told to stop may take to clean up before it is dropped: longer than the
/// exec handler gives its command between SIGTERM and SIGKILL.
const CLEAN_UP: Duration = Duration::from_secs(3);

/// Runs the handler until it ends, its deadline passes, or `stop` ends because nobody wants the result. Past
/// that it is told through [`BatchContext::cancelled`], and dropped or abandoned if it does not end.
pub async fn process(
    threads: &HandlerThreads,
    served: &Served,
    batch: Arc<Batch>,
    saved: Cursor,
    reporter: Reporter,
    permits: Arc<dyn Permits>,
    stop: impl Future<Output = ()>,
) -> Processed {
    let deadline = Instant::now() + served.deadline;
    let cancelled = CancellationToken::new();
    let id = batch.id;
    let ctx = BatchContext {
        batch,
        deadline,
        cancelled: cancelled.clone(),
        permits,
        saved,
        reporter,
    };
    let span = span(&ctx.batch);
    let handler = served.handler.clone();
    let handling = async move { handler.handle(&ctx).await };
    let mut handling = threads.run(handling.instrument(span));
    let stopped = tokio::select! {
        biased;
        ended = handling.ended() => return Processed::Ended(flatten(ended)),
        () = sleep_until(deadline.into()) => false,
        () = stop => true,
    };
    cancelled.cancel();
    let late = timeout(CLEAN_UP, handling.ended()).await;
    let dropped = match &late {
        Ok(_) => Dropped::Gone,
        Err(_) => handling.drop_it().await,
    };
    if dropped == Dropped::Abandoned {
        tracing::warn!(batch.id = %id, "abandoned a handler that was told to end and blocks its thread");
    }
    match (stopped, dropped) {
        (true, _) => Processed::Stopped,
        (false, Dropped::NotStarted) => Processed::NotStarted,
        (false, dropped) => Processed::Ended(Err(too_late(served.deadline, dropped, late.ok()))),
    }
}

/// What the handler logs says whose it is.
fn span(batch: &Batch) -> Span {
    tracing::info_span!(
        "batch",
        batch.id = %batch.id,
        run.id = %batch.run,
        pipeline = %batch.pipeline,
        key = %batch.key,
        attempt = %batch.attempt,
    )
}

/// What it says about being stopped is better than what we could say: it has the command's last words.
fn too_late(deadline: Duration, dropped: Dropped, late: Option<Handled>) -> HandlerError {
    if let Some(Err(error)) = late.map(flatten) {
        return error;
    }
    let abandoned = match dropped {
        Dropped::Abandoned => ", and it blocks its thread: it was abandoned",
        Dropped::Gone | Dropped::NotStarted => "",
    };
    HandlerError::retry(format!(
        "no result within the deadline of {deadline:?}{abandoned}"
    ))
}

/// What a handler returned, or its panic.
type Handled = Result<Result<Output, HandlerError>, JoinError>;

fn flatten(ended: Handled) -> Result<Output, HandlerError> {
    ended.unwrap_or_else(|error| {
        Err(HandlerError::retry(match error.try_into_panic() {
            Ok(panic) => format!("the handler panicked: {}", panic_message(&*panic)),
            Err(_) => "the worker ended before its handler".to_owned(),
        }))
    })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use serde_json::value::RawValue;
    use shared::id::{BatchId, RunId};
    use shared::name::{Attempt, Key, PipelineName};

    use super::*;
    use crate::handler::Handler;
    use crate::permits::Unlimited;

    struct Scripted;

    #[async_trait]
    impl Handler for Scripted {
        type Input = String;

        async fn handle(&self, input: String, _: &BatchContext) -> Result<Output, HandlerError> {
            match input.as_str() {
                "panic" => panic!("at the disco"),
                "hang" => std::future::pending().await,
                _ => Ok(Output::default()),
            }
        }
    }

    async fn run(payload: &str, stop: &CancellationToken) -> Processed {
        let served = Served::unstored(Arc::new(Scripted), Duration::from_secs(30));
        let batch = Arc::new(Batch {
            id: BatchId::generate(),
            run: RunId::generate(),
            pipeline: PipelineName::new("p").unwrap(),
            key: Key::default(),
            attempt: Attempt::new(1),
            payload: RawValue::from_string(payload.into()).unwrap(),
        });
        let threads = HandlerThreads::here();
        let saved = Cursor::default();
        let reporter = Reporter::default();
        let permits = Unlimited::shared();
        let stop = stop.cancelled();
        process(&threads, &served, batch, saved, reporter, permits, stop).await
    }

    async fn error(payload: &str) -> HandlerError {
        match run(payload, &CancellationToken::new()).await {
            Processed::Ended(Err(error)) => error,
            other => panic!("{payload}: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_way_to_end_is_a_verdict() {
        assert!(matches!(
            run("\"fine\"", &CancellationToken::new()).await,
            Processed::Ended(Ok(_))
        ));
        assert_eq!(
            error("\"panic\"").await,
            HandlerError::retry("the handler panicked: at the disco")
        );
        assert_eq!(
            error("\"hang\"").await,
            HandlerError::retry("no result within the deadline of 30s")
        );
        assert!(matches!(
            error("{\"no\":\"text\"}").await,
            HandlerError::Fail {
                reason: "bad_payload",
                ..
            }
        ));
    }

    #[tokio::test]
    async fn an_unwanted_handler_is_stopped() {
        let stop = CancellationToken::new();
        stop.cancel();
        assert!(matches!(run("\"hang\"", &stop).await, Processed::Stopped));
    }
}
