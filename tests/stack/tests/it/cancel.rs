//! A cancelled run ends soon, whatever its batches are doing.

use std::time::Duration;

use coordinator::run::RunState;
use harness::rabbitmq::shared as broker;
use scenario::script::{PIPELINE, Scripted};
use shared::id::RunId;

const SOON: Duration = Duration::from_secs(30);

/// Two batches are being worked on and will not end, two are in the worker's hands.
async fn midway() -> (Scripted<'static>, RunId) {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "2");
    scripted.stack.set("TIDEGATE_WORKER__LOOK_AHEAD_MIN", "32");
    scripted.start_worker("a").await.unwrap();
    let lines = (0..4)
        .map(|n| harness::api::line(&format!("key-{n}"), &n.into()))
        .collect();
    let run = scripted.stack.api.submit(PIPELINE, lines).await.unwrap();
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();
    (scripted, run.run)
}

async fn all_are_cancelled(scripted: &Scripted<'_>, run: RunId) {
    let ended = scripted
        .stack
        .api
        .wait_for_run(run, "all to be cancelled", SOON, |run| {
            run.batches.cancelled == 4
        })
        .await
        .unwrap();
    assert_eq!(
        (ended.state, ended.retries),
        (RunState::Cancelled, 0),
        "{ended:?}"
    );
    let starts = scripted.starts().unwrap();
    assert_eq!(starts.len(), 2, "the other two were never started");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_stopped_and_what_waits_is_not_started() {
    let (mut scripted, run) = midway().await;
    scripted.stack.api.cancel(run).await.unwrap();
    all_are_cancelled(&scripted, run).await;
    let sink = scripted.stack.sink().await.unwrap();
    let commits = sink.number("select count(*) from batch_commits").await;
    assert_eq!(commits.unwrap(), 0);

    // Its slots are free again.
    scripted.let_go("a").unwrap();
    let line = harness::api::line("key", &5.into());
    let next = scripted.stack.api.submit(PIPELINE, line).await.unwrap();
    let next = scripted.stack.api.wait_until_ended(next.run, SOON).await;
    assert_eq!(next.unwrap().batches.completed, 1);
    scripted.stack.worker("a").ensure_running().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_worker_had_is_not_run_again() {
    let (mut scripted, run) = midway().await;
    scripted.stack.worker("a").kill().unwrap();
    scripted.stack.api.cancel(run).await.unwrap();
    scripted.start_worker("b").await.unwrap();
    all_are_cancelled(&scripted, run).await;
}
