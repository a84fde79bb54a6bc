//! A worker that is asked to stop finishes what it runs and hands back the rest.

use std::time::Duration;

use harness::rabbitmq::shared as broker;
use nix::sys::signal::Signal;
use scenario::script::{PIPELINE, Scripted};

const SOON: Duration = Duration::from_secs(30);

fn batches(count: u32) -> String {
    (0..count)
        .map(|n| harness::api::line(&format!("key-{n}"), &n.into()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_finishes_what_runs_and_returns_the_rest() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "2");
    // All of them at once, though they are long.
    scripted.stack.set("TIDEGATE_WORKER__LOOK_AHEAD_MIN", "32");
    scripted.start_worker("a").await.unwrap();
    let run = scripted
        .stack
        .api
        .submit(PIPELINE, batches(10))
        .await
        .unwrap();
    let running = scripted.wait_for_starts("a", 2, SOON).await.unwrap();

    scripted.stack.worker("a").signal(Signal::SIGTERM).unwrap();
    scripted.start_worker("b").await.unwrap();
    // What waited in a's prefetch buffer is done elsewhere while a still runs its two.
    let elsewhere = scripted.wait_for_starts("b", 8, SOON).await.unwrap();
    scripted.let_go("a").unwrap();
    assert_eq!(scripted.stack.worker("a").exit_code(SOON).unwrap(), 0);
    let report = scripted.stack.worker("a").output().unwrap();
    let report = report.lines().find(|line| line.contains("drained"));
    let report = report.unwrap_or_default();
    assert!(
        report.contains("finished=2 given_back=8 abandoned=0 left=0"),
        "{report}"
    );

    let ended = scripted
        .stack
        .api
        .wait_until_ended(run.run, SOON)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (10, 0),
        "{ended:?}"
    );
    assert_eq!((running.len(), elsewhere.len()), (2, 8));
    assert_eq!(
        scripted.starts().unwrap().len(),
        10,
        "every batch was started once"
    );
    let output = scripted.stack.worker("b").output().unwrap();
    assert!(!output.contains("runs a batch alone"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once_and_loses_nothing() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.start_worker("a").await.unwrap();
    let run = scripted
        .stack
        .api
        .submit(PIPELINE, batches(2))
        .await
        .unwrap();
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();
    let worker = scripted.stack.worker("a");
    worker.signal(Signal::SIGTERM).unwrap();
    worker.wait_for_line("drain", SOON).unwrap();
    worker.signal(Signal::SIGTERM).unwrap();
    worker.wait(Duration::from_secs(5)).unwrap();

    scripted.start_worker("b").await.unwrap();
    let ended = scripted
        .stack
        .api
        .wait_until_ended(run.run, SOON)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (2, 0),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_stops_and_goes_on_later() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.start_worker("a").await.unwrap();
    let run = scripted
        .stack
        .api
        .submit(PIPELINE, batches(5))
        .await
        .unwrap();
    scripted.wait_for_starts("a", 5, SOON).await.unwrap();
    assert_eq!(
        scripted.stack.coordinator().terminate(SOON).unwrap().code(),
        Some(0)
    );
    scripted.let_go("a").unwrap();
    scripted.stack.start_coordinator().await.unwrap();
    let ended = scripted
        .stack
        .api
        .wait_until_ended(run.run, SOON)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (5, 0),
        "{ended:?}"
    );
    assert_eq!(
        scripted.starts().unwrap().len(),
        5,
        "nothing was done twice"
    );
}
