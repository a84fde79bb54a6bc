//! What the coordinator tells all workers: nothing more of a cancelled run is started, and what runs is stopped.

use std::time::Duration;

use harness::rabbitmq::shared as broker;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use scenario::script::{PIPELINE, Scripted};
use shared::control::{CONTROL_TYPE, Control};
use shared::id::RunId;
use shared::name::Instance;

const SOON: Duration = Duration::from_secs(30);

async fn say(channel: &Channel, cancelled: Vec<RunId>) {
    let control = Control {
        coordinator: Instance::from("by hand".to_owned()),
        cancelled,
    };
    let properties = BasicProperties::default().with_type(CONTROL_TYPE.into());
    let body = serde_json::to_vec(&control).unwrap();
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(
        "tidegate.control".into(),
        "".into(),
        options,
        &body,
        properties,
    );
    sent.await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_runs_batches_stop_and_are_handed_back() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "2");
    scripted.start_worker("a").await.unwrap();
    let lines = (0..4)
        .map(|n| harness::api::line(&format!("key-{n}"), &n.into()))
        .collect();
    let run = scripted.stack.api.submit(PIPELINE, lines).await.unwrap();
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();
    let url = scripted.stack.vhost().url();
    let connection = Connection::connect(&url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();

    say(&channel, vec![run.run]).await;
    // The ledger knows of no cancellation here, so what is handed back waits to go out again.
    scripted
        .stack
        .api
        .wait_for_run(run.run, "all to be handed back", SOON, |run| {
            run.batches.pending == 4
        })
        .await
        .unwrap();
    assert_eq!(
        scripted.starts().unwrap().len(),
        2,
        "two were never started"
    );

    say(&channel, vec![]).await;
    scripted.let_go("a").unwrap();
    let ended = scripted
        .stack
        .api
        .wait_until_ended(run.run, SOON)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (4, 0),
        "{ended:?}"
    );
}
