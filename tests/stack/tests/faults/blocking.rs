//! The long variants of what handlers and the machine can do to a worker; the short ones are in `it`.

use std::time::Duration;

use harness::rabbitmq::shared as broker;
use scenario::blocking::{block_everything, freeze};

const HEARTBEAT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_block_all_threads_for_90_s_cost_nothing() {
    let block = Duration::from_secs(90);
    block_everything(broker(), block, HEARTBEAT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_frozen_for_a_minute_does_nothing_twice() {
    let frozen = Duration::from_mins(1);
    freeze(broker(), frozen, HEARTBEAT).await.unwrap();
}
