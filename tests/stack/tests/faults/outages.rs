//! The sink is in trouble for longer than batches wait for it, so that they are given back.

use std::time::Duration;

use harness::rabbitmq::RabbitMq;
use scenario::outage::{self, OnDisk};

/// Batches wait for 30 s.
const LONG: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_away_for_long_loses_nothing() {
    let broker = RabbitMq::start().unwrap();
    let behaviour = outage::away(&broker, LONG).await.unwrap();
    eprintln!("away for {LONG:?}: {behaviour:?}");
    behaviour.check().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_for_long_loses_nothing() {
    let broker = RabbitMq::start().unwrap();
    for what in [OnDisk::Database, OnDisk::Files] {
        let Some(behaviour) = outage::full(&broker, what, LONG).await.unwrap() else {
            eprintln!("SKIPPED: only root can mount a small disk");
            return;
        };
        eprintln!("{what:?} on a full disk for {LONG:?}: {behaviour:?}");
        behaviour.check().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_slow_for_long_is_waited_for() {
    let broker = RabbitMq::start().unwrap();
    let behaviour = outage::slow(&broker, LONG).await.unwrap();
    eprintln!("slow for {LONG:?}: {behaviour:?}");
    assert_eq!(behaviour.tries, 0);
}
