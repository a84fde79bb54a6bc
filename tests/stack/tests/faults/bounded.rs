//! A large backlog costs neither memory nor broker: it lives in the ledger.

use std::time::Duration;

use harness::api::line;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use serde_json::json;

const BATCHES: u32 = 200_000;
const WINDOW: u64 = 1_000;
const NOOP: &str =
    "[pipelines.noop]\nhandler = \"noop\"\nsink = false\nwindow_max = 1000\nlook_ahead = 1000\n";
const LIMIT: Duration = Duration::from_mins(10);
const MEMORY: u64 = 100 * 1024 * 1024;
/// Batches beyond the window that may be in the broker for a moment: settled, with the worker's ack still
/// under way, at most what one worker holds.
const SLACK: u64 = 48;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_thousand_batches_stay_in_the_ledger() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    stack.set("TIDEGATE_LOG", "warn");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let lines = (0..BATCHES)
        .map(|n| line(&format!("key-{}", n % 100), &json!({ "n": n })))
        .collect();
    let run = stack.api.submit("noop", lines).await.unwrap();

    let (mut deepest, mut samples) = (0, 0);
    loop {
        let depths = stack.vhost().queue_depths().unwrap();
        let work = depths
            .iter()
            .filter(|(name, _)| name.starts_with("tidegate.work.noop."));
        deepest = deepest.max(work.map(|(_, depth)| depth.total()).sum());
        samples += 1;
        let now = stack.api.run(run.run).await.unwrap();
        let sum = now.batches.pending + now.batches.out + now.batches.completed;
        assert_eq!(now.batches.accepted, sum, "conservation: {now:?}");
        if now.batches.completed == u64::from(BATCHES) {
            break;
        }
    }
    let ended = stack.api.wait_until_ended(run.run, LIMIT).await.unwrap();
    let memory = stack.coordinator().memory().unwrap();
    eprintln!(
        "peak {} KiB, deepest {deepest} of {samples} samples, {ended:?}",
        memory.peak / 1024
    );
    assert!(memory.peak < MEMORY, "{memory:?}");
    assert!(
        deepest <= WINDOW + SLACK,
        "{deepest} batches were in the broker at once"
    );
    assert!(samples > 3, "the run was too fast to be looked at");
}
