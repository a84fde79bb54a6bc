//! Everything that may happen to containers happens to one run of the main job.

use std::time::{Duration, Instant};

use containers::broker::Size;
use containers::installation::{GRACE_SECONDS, Installation, Plan};
use containers::sync::Sync;

const PROPERTIES: u32 = 6;
const DAYS: u32 = 16;
/// Longer than anybody waits for a worker's heartbeat, so that what it held has long been done by others.
const PAUSE: Duration = Duration::from_mins(1);
/// Longer than RabbitMQ waits for a heartbeat (10 s, twice or three times).
const AWAY: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn rows_equal_truth_whatever_happens_to_the_containers() {
    let plan = Plan {
        broker: Size::Single,
        properties: PROPERTIES,
        latency: Duration::from_millis(600),
        slots: 4,
    };
    let mut all = Installation::start(plan).await.unwrap();
    for worker in ["killed", "paused", "cut-off", "spared"] {
        all.start_worker(worker).await.unwrap();
    }
    let sync = Sync::begin(&all, PROPERTIES, DAYS).unwrap();
    sync.progress(&all, 100).await.unwrap();

    all.worker("killed").kill().unwrap();
    all.worker("paused").pause().unwrap();
    let paused = Instant::now();
    all.worker("cut-off").disconnect().unwrap();
    let cut_off = Instant::now();
    sync.progress(&all, 50).await.unwrap();

    all.coordinator().restart(GRACE_SECONDS).unwrap();
    all.wait_for_coordinator().await.unwrap();
    sync.progress(&all, 50).await.unwrap();

    all.broker.nodes[0].restart(GRACE_SECONDS).unwrap();
    all.broker.wait_until_ready().await.unwrap();
    sync.progress(&all, 50).await.unwrap();

    tokio::time::sleep(AWAY.saturating_sub(cut_off.elapsed())).await;
    all.worker("cut-off").connect().unwrap();
    tokio::time::sleep(PAUSE.saturating_sub(paused.elapsed())).await;
    sync.ensure_under_way(&all).await.unwrap();
    all.worker("paused").unpause().unwrap();
    for worker in ["paused", "cut-off", "spared"] {
        all.wait_for_worker(worker).await.unwrap();
    }
    sync.finish(&all).await.unwrap();
    // Those who came back can still be asked to leave.
    for worker in ["paused", "cut-off", "spared"] {
        all.drain_worker(worker).unwrap();
    }
}
