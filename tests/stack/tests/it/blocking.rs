//! Handlers that block their threads hurt nobody but themselves; `tests/faults` has the long variants.

use std::time::Duration;

use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use harness::wait;
use scenario::BLOCKING;
use scenario::blocking::{batches, block_everything, freeze, start, wait_for_starts};

const SOON: Duration = Duration::from_secs(30);
/// Dead after two to three of them.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Far beyond any test.
const HANG: Duration = Duration::from_hours(1);
/// Longer than a worker may take to drain.
const LONG: Duration = Duration::from_mins(1);
const BLINK: Duration = Duration::from_millis(1);

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_block_all_threads_cost_no_connection() {
    let block = Duration::from_secs(8);
    block_everything(broker(), block, HEARTBEAT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_does_nothing_twice() {
    let frozen = Duration::from_secs(9);
    freeze(broker(), frozen, HEARTBEAT).await.unwrap();
}

/// Handlers that nobody expects back keep no drain waiting.
fn drained_in_time(stack: &mut Stack<'_>) -> String {
    let output = stack.worker("a").output().unwrap();
    assert!(!output.contains("not drained in time"), "{output}");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_handler_is_abandoned_and_its_slot_refilled() {
    let settings = "deadline = \"1s\"\nmax_attempts = 1\n";
    let slots = [("TIDEGATE_WORKER__SLOTS", "2")];
    let mut stack = start(broker(), settings, &slots).await.unwrap();
    let hung = stack.api.submit(BLOCKING, batches(&[HANG, HANG])).await;
    let hung = hung.unwrap();
    wait_for_starts(&stack, 2).await.unwrap();
    // There is no slot for these, and no thread.
    let rest = stack.api.submit(BLOCKING, batches(&[BLINK; 4])).await;
    let rest = rest.unwrap();

    let ended = stack.api.wait_until_ended(rest.run, SOON).await.unwrap();
    assert_eq!((ended.batches.completed, ended.retries), (4, 0));
    let ended = stack.api.wait_until_ended(hung.run, SOON).await.unwrap();
    assert_eq!(ended.batches.dead, 2, "{ended:?}");
    let dead = stack.api.dead(hung.run).await.unwrap();
    assert!(
        dead.iter().all(|batch| batch.error.contains("abandoned")),
        "{dead:?}"
    );
    for metric in ["tidegate_abandoned_total", "tidegate_abandoned_handlers"] {
        let count = stack.worker_metric("a", metric).await.unwrap();
        assert_eq!(count, Some(2.0), "{metric}");
    }
    let worker = stack.worker("a");
    worker.wait_for_line("abandoned a handler", SOON).unwrap();
    assert_eq!(worker.terminate(LONG).unwrap().code(), Some(0));
    drained_in_time(&mut stack);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_too_many_abandoned_handlers_is_replaced() {
    let settings = "deadline = \"1s\"\nmax_attempts = 1\n";
    let allowed = [("TIDEGATE_WORKER__MAX_ABANDONED", "1")];
    let mut stack = start(broker(), settings, &allowed).await.unwrap();
    let run = stack.api.submit(BLOCKING, batches(&[HANG, HANG, BLINK]));
    let run = run.await.unwrap();
    assert_eq!(stack.worker("a").exit_code(LONG).unwrap(), 1);
    let output = drained_in_time(&mut stack);
    assert!(output.contains("worker.max_abandoned = 1"), "{output}");

    // The hung ones were reported, so they are not run again; the third one was not their victim.
    stack.spawn_worker_of("blocking-worker", "b").unwrap();
    let ended = stack.api.wait_until_ended(run.run, SOON).await.unwrap();
    assert_eq!((ended.batches.completed, ended.batches.dead), (1, 2));
    wait::until("the worker to be ready", SOON, async || {
        let consuming = stack.worker_metric("b", "tidegate_consuming").await?;
        Ok((consuming == Some(1.0)).then_some(()))
    })
    .await
    .unwrap();
}
