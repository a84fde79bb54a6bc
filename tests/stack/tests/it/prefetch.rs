//! How many deliveries a worker holds follows from its batches.

use std::time::Duration;

use harness::api::line;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use scenario::script::{PIPELINE, Scripted};

const SOON: Duration = Duration::from_secs(30);
const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\nsink = false\nwindow_min = 1000\n";
const SHORT_BATCHES: u64 = 6_000;
/// More than the slots, and far less than what batches that take no time ask for, even on a busy machine.
const MANY: f64 = 20.0;

#[tokio::test(flavor = "multi_thread")]
async fn long_batches_are_not_hoarded_while_another_worker_is_idle() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "2");
    scripted.start_worker("a").await.unwrap();
    let lines = (0..12).map(|n| line(&format!("key-{n}"), &n.into()));
    let run = scripted.stack.api.submit(PIPELINE, lines.collect()).await;
    let run = run.unwrap();
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();

    scripted.start_worker("b").await.unwrap();
    scripted.wait_for_starts("b", 10, SOON).await.unwrap();
    scripted.let_go("a").unwrap();
    let ended = scripted.stack.api.wait_until_ended(run.run, SOON).await;
    assert_eq!(ended.unwrap().batches.completed, 12);
    assert_eq!(scripted.starts().unwrap().len(), 12, "nothing ran twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn short_batches_are_looked_ahead_for() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let lines = (0..SHORT_BATCHES).map(|n| line(&format!("key-{}", n % 100), &n.into()));
    let run = stack.api.submit("noop", lines.collect()).await.unwrap();
    let ended = stack.api.wait_until_ended(run.run, 2 * SOON).await.unwrap();
    assert_eq!(ended.batches.completed, SHORT_BATCHES, "{ended:?}");

    let look_ahead = stack.worker_metric("a", "tidegate_look_ahead").await;
    let look_ahead = look_ahead.unwrap().unwrap();
    assert!(look_ahead >= MANY, "{look_ahead}");
    let changes = stack.worker_metric("a", "tidegate_prefetch_changes_total");
    assert!(changes.await.unwrap().unwrap() >= 1.0);
    for lost in ["tidegate_redelivered_total", "tidegate_sessions_lost_total"] {
        let count = stack.worker_metric("a", lost).await.unwrap();
        assert_eq!(count, None, "{lost}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lane_alone_fills_all_slots() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "4");
    scripted.start_worker("a").await.unwrap();
    let lines = (0..4).map(|n| line("one-key", &n.into()));
    let run = scripted.stack.api.submit(PIPELINE, lines.collect()).await;
    let run = run.unwrap();
    scripted.wait_for_starts("a", 4, SOON).await.unwrap();
    scripted.let_go("a").unwrap();
    let ended = scripted.stack.api.wait_until_ended(run.run, SOON).await;
    assert_eq!(ended.unwrap().batches.completed, 4);
}
