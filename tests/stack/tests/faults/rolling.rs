//! A fleet is replaced during a run of 20,000 batches.

use harness::rabbitmq::shared as broker;
use scenario::rolling::fleet_of_four;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_batches_hardly_notice() {
    let rolled = fleet_of_four(broker(), 20_000).await.unwrap();
    eprintln!("{rolled:?}");
}
