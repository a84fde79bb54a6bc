//! A batch whose worker dies or drains goes on where it was.

use std::fs;
use std::time::Duration;

use harness::api::line;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use harness::wait;
use nix::sys::signal::Signal;
use scenario::{RESUMING, STEPS};
use shared::id::RunId;

const SOON: Duration = Duration::from_secs(30);

/// One batch, and the worker `a` has done half of it.
async fn midway() -> (Stack<'static>, RunId) {
    let pipeline = format!("[pipelines.{RESUMING}]\n");
    let mut stack = Stack::new(broker(), &pipeline).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", RESUMING);
    stack.set("TIDEGATE_WORKER__DRAIN_TIMEOUT", "1s");
    fs::write(stack.scratch().path().join("hold"), "").unwrap();
    stack.start_coordinator().await.unwrap();
    stack.spawn_worker_of("resuming-worker", "a").unwrap();
    let run = stack.api.submit(RESUMING, line("key", &1.into())).await;
    let cursors = format!(
        "select count(*) from batch_cursors where cursor = '{}'",
        STEPS / 2 + 1
    );
    wait::until("half of the batch to be done", SOON, async || {
        // The file is there once the worker is.
        let Ok(sink) = stack.sink().await else {
            return Ok(None);
        };
        let saved = sink.number(&cursors).await.unwrap_or_default();
        Ok((saved == 1).then_some(()))
    })
    .await
    .unwrap();
    (stack, run.unwrap().run)
}

/// Another worker does the rest, and only the rest.
async fn goes_on(stack: &mut Stack<'_>, run: RunId) {
    fs::remove_file(stack.scratch().path().join("hold")).unwrap();
    stack.spawn_worker_of("resuming-worker", "b").unwrap();
    let ended = stack.api.wait_until_ended(run, SOON).await.unwrap();
    let seen = (ended.batches.completed, ended.retries);
    assert_eq!(seen, (1, 0), "{ended:?}");
    let steps = fs::read_to_string(stack.scratch().path().join("steps")).unwrap();
    let expected: Vec<String> = (0..STEPS).map(|step| step.to_string()).collect();
    assert_eq!(steps.lines().collect::<Vec<_>>(), expected);
    let sink = stack.sink().await.unwrap();
    let from = sink.texts("select json from results").await.unwrap();
    assert_eq!(from, [(STEPS / 2 + 1).to_string()]);
    let left = sink.number("select count(*) from batch_cursors").await;
    assert_eq!(left.unwrap(), 0, "the marker took its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_shown_who_has_a_batch_and_how_far_it_has_come() {
    let (mut stack, run) = midway().await;
    let half = (Some(u64::from(STEPS / 2 + 1)), Some(u64::from(STEPS)));
    // What it told before that may be of its first steps.
    wait::until("the worker to tell that half is done", SOON, async || {
        for worker in stack.api.workers().await? {
            for batch in worker.holding {
                let in_hand = stack.api.batch(batch).await?.in_hand;
                let told = in_hand.filter(|in_hand| in_hand.worker == worker.worker);
                if told.is_some_and(|told| (told.done, told.total) == half) {
                    return Ok(Some(()));
                }
            }
        }
        Ok(None)
    })
    .await
    .unwrap();
    stack.worker("a").kill().unwrap();
    goes_on(&mut stack, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_batch_goes_on_where_it_was() {
    let (mut stack, run) = midway().await;
    stack.worker("a").kill().unwrap();
    goes_on(&mut stack, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_workers_batch_goes_on_where_it_was() {
    let (mut stack, run) = midway().await;
    let worker = stack.worker("a");
    worker.signal(Signal::SIGTERM).unwrap();
    assert_eq!(worker.exit_code(SOON).unwrap(), 0);
    goes_on(&mut stack, run).await;
}
