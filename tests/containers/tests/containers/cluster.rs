//! RabbitMQ with three nodes, one of which dies.

use std::time::{Duration, Instant};

use containers::broker::Size;
use containers::installation::{Installation, Plan};
use containers::sync::Sync;

const PROPERTIES: u32 = 6;
const DAYS: u32 = 6;
/// Longest time without a confirmed publish.
const STALL: Duration = Duration::from_secs(10);
/// How long publishing is watched after the kill.
const WATCHED: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The longest time in which nothing was published, while somebody looks.
async fn longest_stall(all: &Installation) -> Duration {
    let (begun, mut since, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    let mut published = None;
    while begun.elapsed() < WATCHED {
        let now = all.api.metric("tidegate_published_total").await.unwrap();
        if now > published {
            (published, since) = (now, Instant::now());
        }
        longest = longest.max(since.elapsed());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    assert!(published.is_some(), "nothing was ever published");
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_a_node_stalls_for_seconds_and_loses_nothing() {
    let plan = Plan {
        broker: Size::Cluster,
        properties: PROPERTIES,
        latency: Duration::from_millis(500),
        slots: 4,
    };
    let mut all = Installation::start(plan).await.unwrap();
    for number in 0..3 {
        all.start_worker(&format!("worker-{number}")).await.unwrap();
    }
    let queues = all.broker.ensure_replicated().unwrap();
    let sync = Sync::begin(&all, PROPERTIES, DAYS).unwrap();
    sync.progress(&all, 100).await.unwrap();

    // The one that the coordinator publishes to, which leads some of the queues, too.
    let node = all
        .broker
        .publishing_node_of("tidegate-coordinator")
        .unwrap();
    node.kill().unwrap();
    let stall = longest_stall(&all).await;
    sync.ensure_under_way(&all).await.unwrap();
    eprintln!("{queues} queues; publishing stalled for {stall:.1?} after a node was killed");
    assert!(stall < STALL, "publishing stalled for {stall:?}");

    node.start().unwrap();
    all.broker.wait_until_ready().await.unwrap();
    sync.finish(&all).await.unwrap();
    assert_eq!(all.broker.ensure_replicated().unwrap(), queues);
}
