//! Everybody has an account of its own on the broker: all works, and nobody can do another's part.

use std::time::Duration;

use coordinator::definitions::User;
use harness::emulator::{NO_LIMITS, NO_QUOTAS};
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use harness::{processes, wait};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use scenario::accounts;
use scenario::search_console::Sync;

use crate::strangers;

const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\n";
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_runs_when_everybody_may_do_only_its_part() {
    let mut stack = Stack::new(broker(), NO_LIMITS).unwrap();
    let emulator = stack.start_emulator(NO_QUOTAS).await.unwrap();
    accounts::import(&mut stack).unwrap();
    accounts::start(&mut stack, &["a", "b"]).await.unwrap();
    let mut sync = Sync {
        stack,
        emulator,
        days: 4,
    };
    // What a dead worker leaves behind is asked about over the broker too.
    sync.complete_without("a", 10).await.unwrap();
    assert!(
        !sync
            .stack
            .worker("b")
            .output()
            .unwrap()
            .contains("not allowed"),
        "the worker lacks no permission"
    );

    let doctor = sync.stack.tidegate(&["doctor", "--json"]).await.unwrap();
    let diagnosis = doctor.json().unwrap();
    let checks = diagnosis["checks"].as_array().unwrap();
    for check in checks {
        let name = check["name"].as_str().unwrap();
        let is_about_the_broker = name.starts_with("broker") && name != "broker.version";
        assert!(!is_about_the_broker || check["finding"] == "ok", "{check}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_put_aside_under_narrow_permissions() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    accounts::import(&mut stack).unwrap();
    accounts::start(&mut stack, &["a"]).await.unwrap();
    let stranger = (BasicProperties::default(), b"hello".to_vec());
    strangers::publish(stack.vhost(), &[stranger]).await;
    wait::until("the stranger to be in quarantine", SOON, async || {
        let depths = stack.vhost().queue_depths()?;
        Ok((depths["tidegate.quarantine"].ready == 1).then_some(()))
    })
    .await
    .unwrap();
    assert!(!stack.worker("a").output().unwrap().contains("not allowed"));
    assert!(
        !stack
            .coordinator()
            .output()
            .unwrap()
            .contains("not allowed")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_job_declares_what_the_definitions_say() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    accounts::import(&mut stack).unwrap();
    stack.vhost().delete_queue("tidegate.work.noop.0").unwrap();
    accounts::log_in(&mut stack, User::Topology);
    // Every other queue is declared over the imported one: the broker refuses that when arguments differ.
    let declare = || {
        let folder = stack.scratch().path();
        let mut command = processes::command("coordinator", folder, &stack.environment).unwrap();
        command.args(["topology", "declare"]).output().unwrap()
    };
    let declared = declare();
    assert!(declared.status.success(), "{declared:?}");
    let depths = stack.vhost().queue_depths().unwrap();
    assert!(depths.contains_key("tidegate.work.noop.0"), "{depths:?}");
}

/// Something that one can try on the broker.
#[derive(Debug, Clone, Copy)]
enum Attempt {
    Publish(&'static str, &'static str),
    Consume(&'static str),
    Purge(&'static str),
    Delete(&'static str),
    Declare(&'static str),
    DeclareDeadLettering(&'static str, &'static str),
    DeclareExchange(&'static str),
    Bind(&'static str, &'static str),
}

use Attempt::{
    Bind, Consume, Declare, DeclareDeadLettering, DeclareExchange, Delete, Publish, Purge,
};

impl Attempt {
    async fn make(self, channel: &Channel) -> lapin::Result<()> {
        let nothing = FieldTable::default;
        match self {
            Publish(exchange, key) => {
                channel
                    .confirm_select(ConfirmSelectOptions::default())
                    .await?;
                let (options, properties) = <(BasicPublishOptions, BasicProperties)>::default();
                let publishing =
                    channel.basic_publish(exchange.into(), key.into(), options, b"x", properties);
                publishing.await?.await.map(drop)
            }
            Consume(queue) => {
                let options = BasicConsumeOptions::default();
                let consuming = channel.basic_consume(queue.into(), "".into(), options, nothing());
                consuming.await.map(drop)
            }
            Purge(queue) => {
                let options = QueuePurgeOptions::default();
                channel.queue_purge(queue.into(), options).await.map(drop)
            }
            Delete(queue) => {
                let options = QueueDeleteOptions::default();
                channel.queue_delete(queue.into(), options).await.map(drop)
            }
            Declare(queue) => declare(channel, queue, nothing()).await,
            DeclareDeadLettering(queue, exchange) => {
                let mut arguments = nothing();
                let exchange = AMQPValue::LongString(exchange.into());
                arguments.insert("x-dead-letter-exchange".into(), exchange);
                declare(channel, queue, arguments).await
            }
            DeclareExchange(exchange) => {
                let options = ExchangeDeclareOptions::default();
                let (name, kind) = (exchange.into(), ExchangeKind::Direct);
                channel
                    .exchange_declare(name, kind, options, nothing())
                    .await
            }
            Bind(queue, exchange) => {
                let options = QueueBindOptions::default();
                let (queue, exchange) = (queue.into(), exchange.into());
                channel
                    .queue_bind(queue, exchange, "0".into(), options, nothing())
                    .await
            }
        }
    }
}

async fn declare(channel: &Channel, queue: &str, arguments: FieldTable) -> lapin::Result<()> {
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let declaring = channel.queue_declare(queue.into(), options, arguments);
    declaring.await.map(drop)
}

/// Tries everything as this user, each thing on a channel of its own, since a refusal closes it.
async fn tried(url: &str, attempts: &[Attempt]) -> Vec<(Attempt, lapin::Result<()>)> {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap();
    let mut tried = Vec::new();
    for attempt in attempts {
        let channel = connection.create_channel().await.unwrap();
        tried.push((*attempt, attempt.make(&channel).await));
    }
    tried
}

async fn refused(url: &str, attempts: &[Attempt]) {
    for (attempt, answer) in tried(url, attempts).await {
        let is_refusal = answer.as_ref().is_err_and(|error| match error.kind() {
            ErrorKind::ProtocolError(error) => {
                *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
            }
            _ => false,
        });
        assert!(is_refusal, "{attempt:?}: {answer:?}");
    }
}

async fn allowed(url: &str, attempts: &[Attempt]) {
    for (attempt, answer) in tried(url, attempts).await {
        assert!(answer.is_ok(), "{attempt:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_do_another_ones_part() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    accounts::import(&mut stack).unwrap();
    let work = "tidegate.work.noop.0";

    let worker = accounts::url(&stack, User::Worker);
    let own = "tidegate.control.test";
    allowed(
        &worker,
        &[Declare(own), Bind(own, "tidegate.control"), Consume(work)],
    )
    .await;
    refused(
        &worker,
        &[
            // Work, directly, by the default exchange, or by having the broker dead-letter it there.
            Publish("tidegate.work", "noop.0"),
            Publish("", work),
            DeclareDeadLettering("tidegate.control.test2", "tidegate.work"),
            DeclareDeadLettering("tidegate.control.test2", ""),
            // Other people's words.
            Publish("tidegate.control", ""),
            Publish("tidegate.quarantine", ""),
            Consume("tidegate.outcomes.0"),
            Purge("tidegate.outcomes.0"),
            Consume("tidegate.dead"),
            Consume("tidegate.quarantine"),
            Bind(own, "tidegate.work"),
            Bind(own, "tidegate.outcomes"),
            Bind(own, "tidegate.presence"),
            // What is there.
            Delete(work),
            Delete("tidegate.outcomes.0"),
            Delete("tidegate.dead"),
            Declare("tidegate.work.other.0"),
            Declare("other"),
            DeclareExchange("tidegate.other"),
        ],
    )
    .await;

    let coordinator = accounts::url(&stack, User::Coordinator);
    allowed(&coordinator, &[Publish("tidegate.quarantine", "")]).await;
    refused(
        &coordinator,
        &[
            Publish("tidegate.outcomes", "0"),
            Publish("tidegate.dead", ""),
            Delete(work),
            Delete("tidegate.outcomes.0"),
            Declare("tidegate.work.other.0"),
            DeclareExchange("tidegate.other"),
            Bind("tidegate.outcomes.0", "tidegate.work"),
        ],
    )
    .await;

    let topology = accounts::url(&stack, User::Topology);
    allowed(&topology, &[Declare("tidegate.other")]).await;
    refused(&topology, &[Declare("other"), Publish("", work)]).await;

    let monitor = accounts::url(&stack, User::Monitor);
    refused(
        &monitor,
        &[
            Publish("tidegate.work", "noop.0"),
            Consume(work),
            Purge(work),
            Delete(work),
            Declare("tidegate.control.x"),
        ],
    )
    .await;
}
