//! The sink is in trouble for a few seconds; `tests/faults` lets it be for longer.

use std::time::Duration;

use harness::rabbitmq::shared as broker;
use scenario::outage::{self, OnDisk};

const SOME_SECONDS: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_away_loses_nothing_and_is_tried_now_and_then() {
    let behaviour = outage::away(broker(), SOME_SECONDS).await.unwrap();
    behaviour.check().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_database_loses_nothing() {
    full(OnDisk::Database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_files_loses_nothing() {
    full(OnDisk::Files).await;
}

async fn full(what: OnDisk) {
    match outage::full(broker(), what, SOME_SECONDS).await.unwrap() {
        Some(behaviour) => behaviour.check().unwrap(),
        // A test's words, seen with --nocapture.
        #[allow(clippy::print_stderr)]
        None => eprintln!("SKIPPED: only root can mount a small disk"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_sink_is_waited_for_and_not_tried_again() {
    let behaviour = outage::slow(broker(), SOME_SECONDS).await.unwrap();
    assert_eq!(behaviour.tries, 0, "{behaviour:?}");
    assert!(behaviour.recovery < Duration::from_secs(5), "{behaviour:?}");
}
