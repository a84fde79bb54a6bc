//! Processes are killed in the middle of a run; it ends as if nothing had happened.

use std::time::{Duration, SystemTime};

use harness::rabbitmq::{RabbitMq, shared as broker};
use nix::sys::signal::Signal;
use scenario::script::{PIPELINE, Scripted};
use scenario::search_console::{Database, READABLE, Sync, finished};

const DAYS: u32 = 4;
/// Slow enough that a run is still going when something is done to it.
const SLOW: &str = "[latency]\nmode = \"fixed\"\nms = 40\n";
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_batches_start_elsewhere_within_a_second() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.start_worker("a").await.unwrap();
    let lines = (0..4)
        .map(|n| harness::api::line(&format!("key-{n}"), &n.into()))
        .collect();
    let run = scripted.stack.api.submit(PIPELINE, lines).await.unwrap();
    let mut held = scripted.wait_for_starts("a", 4, SOON).await.unwrap();
    scripted.start_worker("b").await.unwrap();

    let killed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    scripted.stack.worker("a").kill().unwrap();
    let mut taken = scripted.wait_for_starts("b", 4, SOON).await.unwrap();
    let latest = taken.iter().map(|start| start.at).max().unwrap();
    let after = latest.saturating_sub(killed);
    assert!(
        after <= Duration::from_secs(1),
        "redelivered after {after:?}"
    );

    let ended = scripted
        .stack
        .api
        .wait_until_ended(run.run, SOON)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (4, 0),
        "{ended:?}"
    );
    held.sort_by(|a, b| a.payload.cmp(&b.payload));
    taken.sort_by(|a, b| a.payload.cmp(&b.payload));
    let payloads = |starts: &[scenario::script::Start]| -> Vec<String> {
        starts.iter().map(|start| start.payload.clone()).collect()
    };
    assert_eq!(
        payloads(&held),
        payloads(&taken),
        "the same four batches, each once"
    );
    let redelivered = scripted
        .stack
        .api
        .metric("tidegate_redelivered_outcomes_total")
        .await
        .unwrap();
    assert_eq!(redelivered, Some(4.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_costs_nothing() {
    let mut sync = Sync::start(broker(), Database::Sqlite, SLOW, DAYS, &["a", "b"])
        .await
        .unwrap();
    let run = sync.complete_without("a", 40).await.unwrap();
    sync.assert_first_attempts(&run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinator_resumes_its_runs() {
    let mut sync = Sync::start(broker(), Database::Sqlite, SLOW, DAYS, &["a", "b"])
        .await
        .unwrap();
    let command = sync.begin(&READABLE).unwrap();
    sync.wait_until_midway(40).await.unwrap();
    sync.stack.coordinator().kill().unwrap();
    sync.stack.start_coordinator().await.unwrap();
    let run = finished(&command.await.unwrap().unwrap()).unwrap();
    sync.assert_truth(&READABLE).await.unwrap();
    sync.assert_first_attempts(&run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_broker_loses_nothing() {
    let broker = RabbitMq::start().unwrap();
    let sync = Sync::start(&broker, Database::Postgres, SLOW, DAYS, &["a", "b"])
        .await
        .unwrap();
    let command = sync.begin(&READABLE).unwrap();
    sync.wait_until_midway(40).await.unwrap();
    broker.restart().unwrap();
    let run = finished(&command.await.unwrap().unwrap()).unwrap();
    sync.assert_truth(&READABLE).await.unwrap();
    sync.assert_first_attempts(&run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_power_loses_nothing() {
    let broker = RabbitMq::start().unwrap();
    let sync = Sync::start(&broker, Database::Sqlite, SLOW, DAYS, &["a", "b"])
        .await
        .unwrap();
    let command = sync.begin(&READABLE).unwrap();
    sync.wait_until_midway(40).await.unwrap();
    broker.kill().unwrap();
    broker.start_again().unwrap();
    let run = finished(&command.await.unwrap().unwrap()).unwrap();
    sync.assert_truth(&READABLE).await.unwrap();
    sync.assert_first_attempts(&run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_that_wakes_late_changes_nothing() {
    // Not SQLite: a process that is frozen while it writes holds the file's lock, and everybody waits for it.
    let mut sync = Sync::start(broker(), Database::Postgres, SLOW, DAYS, &["a", "b"])
        .await
        .unwrap();
    let command = sync.begin(&READABLE).unwrap();
    sync.wait_until_midway(40).await.unwrap();
    // Two to three heartbeats of 10 s pass before the broker gives its batches to the other worker.
    sync.stack.worker("a").signal(Signal::SIGSTOP).unwrap();
    let run = finished(&command.await.unwrap().unwrap()).unwrap();
    sync.stack.worker("a").signal(Signal::SIGCONT).unwrap();
    sync.stack
        .worker("a")
        .terminate(Duration::from_mins(1))
        .unwrap();
    sync.assert_truth(&READABLE).await.unwrap();
    sync.assert_first_attempts(&run).await.unwrap();
    let after = sync.stack.api.run(run.run).await.unwrap();
    assert_eq!(after.batches, run.batches, "what was settled stays settled");
}
