//! Messages on the work queue that are no batch: each ends where a person can see it, and nothing spins.

use std::time::Duration;

use harness::api::line;
use harness::rabbitmq::{Vhost, shared as broker};
use harness::stack::Stack;
use harness::wait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Connection, ConnectionProperties};

const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\n";
const SOON: Duration = Duration::from_secs(30);

/// Publishes to the pipeline's first lane, as a program could that has got hold of the broker.
pub(crate) async fn publish(vhost: &Vhost<'_>, messages: &[(BasicProperties, Vec<u8>)]) {
    let connection = Connection::connect(&vhost.url(), ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    for (properties, body) in messages {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let sent = channel.basic_publish(
            "tidegate.work".into(),
            "noop.0".into(),
            options,
            body,
            properties.clone().with_delivery_mode(2),
        );
        let confirm = sent.await.unwrap().await.unwrap();
        assert!(confirm.is_ack(), "{confirm:?}");
    }
    connection.close(200, "done".into()).await.unwrap();
}

fn strangers() -> Vec<(BasicProperties, Vec<u8>)> {
    let plain = BasicProperties::default();
    let ids = || {
        BasicProperties::default()
            .with_message_id("0198c5a8-7a7e-7000-8000-000000000001".into())
            .with_correlation_id("0198c5a8-7a7e-7000-8000-000000000002".into())
            .with_type("tidegate.batch.v1".into())
    };
    let headers = |key: &str| {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let mut headers = FieldTable::default();
        headers.insert("x-tidegate-attempt".into(), AMQPValue::LongUInt(1));
        headers.insert("x-tidegate-key".into(), text(key));
        headers.insert("x-tidegate-pipeline".into(), text("noop"));
        headers
    };
    vec![
        (plain.clone(), Vec::new()),
        (plain.clone(), b"hello".to_vec()),
        (plain.clone(), b"{\"payload\":1}".to_vec()),
        (plain, vec![0xff; 64]),
        (ids(), b"{}".to_vec()),
        (ids().with_headers(headers("k")), b"not json".to_vec()),
        (
            ids().with_headers(headers("k")),
            vec![b'['; 2 * 1024 * 1024],
        ),
        (
            ids()
                .with_message_id("no uuid".into())
                .with_headers(headers("k")),
            b"1".to_vec(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_on_the_work_queue_are_put_aside() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let strangers = strangers();
    publish(stack.vhost(), &strangers).await;

    // None is about a batch that the ledger knows, so all are put where nobody consumes.
    let count = strangers.len() as u64;
    wait::until("the strangers to be in quarantine", SOON, async || {
        let depths = stack.vhost().queue_depths()?;
        Ok((depths["tidegate.quarantine"].ready == count).then_some(()))
    })
    .await
    .unwrap();
    let depths = stack.vhost().queue_depths().unwrap();
    let elsewhere: u64 = depths
        .iter()
        .filter(|(name, _)| *name != "tidegate.quarantine")
        .map(|(_, d)| d.total())
        .sum();
    assert_eq!(elsewhere, 0, "nothing goes round: {depths:?}");

    // Both still work.
    stack.worker("a").ensure_running().unwrap();
    let run = stack
        .api
        .submit("noop", line("k", &1.into()))
        .await
        .unwrap();
    let run = stack.api.wait_until_ended(run.run, SOON).await.unwrap();
    assert_eq!(run.batches.completed, 1, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_on_the_outcomes_queue_are_put_aside() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.start_coordinator().await.unwrap();
    let connection = Connection::connect(&stack.vhost().url(), ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    for body in [&b""[..], b"hello", b"{\"worker\":\"w\",\"reports\":[{}]}"] {
        let properties = BasicProperties::default().with_type("tidegate.outcomes.v1".into());
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(
            "tidegate.outcomes".into(),
            "0".into(),
            options,
            body,
            properties,
        );
        sent.await.unwrap().await.unwrap();
    }
    wait::until("the strangers to be in quarantine", SOON, async || {
        let depths = stack.vhost().queue_depths()?;
        Ok((depths["tidegate.quarantine"].ready == 3).then_some(()))
    })
    .await
    .unwrap();
    stack.coordinator().ensure_running().unwrap();
}
