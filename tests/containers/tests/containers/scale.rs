//! One worker, eight, two: within a run.

use std::time::Duration;

use containers::broker::Size;
use containers::installation::{Installation, Plan};
use containers::sync::Sync;

/// Enough that eight workers are not held back by what a property may have out at a time.
const PROPERTIES: u32 = 12;
const DAYS: u32 = 5;
const MOST: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn throughput_follows_the_number_of_workers_and_nothing_is_lost() {
    let plan = Plan {
        broker: Size::Single,
        properties: PROPERTIES,
        latency: Duration::from_millis(400),
        slots: 2,
    };
    let mut all = Installation::start(plan).await.unwrap();
    all.start_worker("worker-0").await.unwrap();
    let sync = Sync::begin(&all, PROPERTIES, DAYS).unwrap();
    // Until every property is planned.
    sync.progress(&all, 2 * u64::from(PROPERTIES))
        .await
        .unwrap();
    let one = sync.progress(&all, 60).await.unwrap();

    for number in 1..MOST {
        all.start_worker(&format!("worker-{number}")).await.unwrap();
    }
    let eight = sync.progress(&all, 500).await.unwrap();

    for number in 2..MOST {
        all.drain_worker(&format!("worker-{number}")).unwrap();
    }
    let two = sync.progress(&all, 100).await.unwrap();

    let run = sync.finish(&all).await.unwrap();
    eprintln!("batches a second with 1, 8 and 2 workers: {one:.1}, {eight:.1}, {two:.1}");
    assert!(
        eight > 4.0 * one,
        "{eight} a second with eight workers, {one} with one"
    );
    assert!(
        two > 1.3 * one && two < eight / 2.0,
        "{two} a second with two workers"
    );
    assert_eq!(run.retries, 0, "leaving burns no attempt: {run:?}");
}
