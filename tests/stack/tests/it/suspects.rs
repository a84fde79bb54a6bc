//! A batch that kills its workers takes nobody along for long.

use std::time::{Duration, Instant};

use coordinator::run::RunState;
use harness::api::line;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use scenario::ABORTING;
use serde_json::Value;

/// One with neighbours, two alone.
const MOST_CRASHES: u32 = 3;
const LIMIT: Duration = Duration::from_mins(2);

#[tokio::test(flavor = "multi_thread")]
async fn only_the_batch_that_kills_workers_is_dead() {
    let mut stack = Stack::new(broker(), &format!("[pipelines.{ABORTING}]\n")).unwrap();
    for (name, value) in [
        ("TIDEGATE_LANES", "1"),
        ("TIDEGATE_WORKER__SLOTS", "16"),
        ("TIDEGATE_WORKER__LOOK_AHEAD", "0"),
        ("TIDEGATE_WORKER__PIPELINES", ABORTING),
    ] {
        stack.set(name, value);
    }
    stack.start_coordinator().await.unwrap();
    let lines = (0..16)
        .map(|n| {
            let payload: Value = if n == 7 { "abort".into() } else { n.into() };
            line(&format!("key-{n}"), &payload)
        })
        .collect();
    let run = stack.api.submit(ABORTING, lines).await.unwrap();

    // Restarted at once whenever it dies, as Kubernetes would.
    let (started, mut crashes) = (Instant::now(), 0);
    stack.spawn_worker_of("aborting-worker", "a").unwrap();
    let ended = loop {
        if stack.worker("a").ensure_running().is_err() {
            crashes += 1;
            assert!(crashes <= MOST_CRASHES, "it goes on dying");
            stack.spawn_worker_of("aborting-worker", "a").unwrap();
        }
        let run = stack.api.run(run.run).await.unwrap();
        if run.state != RunState::Running {
            break run;
        }
        assert!(started.elapsed() < LIMIT, "{run:?} after {crashes} crashes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };

    assert_eq!((ended.batches.completed, ended.batches.dead), (15, 1));
    assert_eq!(ended.retries, 0, "no attempt was burnt: {ended:?}");
    assert_eq!(crashes, MOST_CRASHES);
    let dead = stack.api.dead(run.run).await.unwrap();
    assert_eq!(dead[0].reason, "poison", "{dead:?}");
    assert_eq!(dead[0].key.as_str(), "key-7");
    let commits = stack
        .sink()
        .await
        .unwrap()
        .number("select count(*) from batch_commits")
        .await
        .unwrap();
    assert_eq!(commits, 15);
    stack.worker("a").ensure_running().unwrap();
}
