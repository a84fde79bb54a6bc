//! What is set up wrongly is said clearly, at once, with the documented exit code, and nothing is half done.

use std::time::Duration;

use harness::port;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use shared::exit;

/// The worker itself waits 30 s for its database.
const SOON: Duration = Duration::from_mins(1);
const PROGRAMS: [&str; 2] = ["coordinator", "worker"];

/// Starts both programs, insists on the exit code and on every one of `words` in what they say.
pub(crate) fn refused(stack: &mut Stack<'_>, code: u8, words: &[&str]) {
    for program in PROGRAMS {
        refused_by(program, stack, code, words);
    }
}

pub(crate) fn refused_by(program: &str, stack: &mut Stack<'_>, code: u8, words: &[&str]) {
    let service = match program {
        "coordinator" => stack.spawn_coordinator().unwrap(),
        _ => stack.spawn_worker("worker").unwrap(),
    };
    let exited = service.exit_code(SOON).unwrap();
    let output = service.output().unwrap();
    assert_eq!(exited, i32::from(code), "{program}: {output}");
    for word in words {
        assert!(
            output.contains(word),
            "{program} does not say {word:?}: {output}"
        );
    }
    assert!(!output.contains("panicked"), "{program}: {output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there() {
    let mut stack = Stack::new(broker(), "").unwrap();
    let port = port::free();
    stack.set(
        "TIDEGATE_BROKER__URL",
        format!("amqp://guest:hunter2@127.0.0.1:{port}/%2f"),
    );
    stack.set("TIDEGATE_BROKER__START_TIMEOUT", "1s");
    refused(
        &mut stack,
        exit::UNAVAILABLE,
        &[
            &format!("127.0.0.1:{port}"),
            "cannot be reached",
            "broker.url",
        ],
    );
    let output = stack.worker("worker").output().unwrap();
    assert!(
        !output.contains("hunter2"),
        "passwords are not shown: {output}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_speak_amqp() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stack = Stack::new(broker(), "").unwrap();
    let address = silent.local_addr().unwrap();
    stack.set(
        "TIDEGATE_BROKER__URL",
        format!("amqp://guest:guest@{address}/%2f"),
    );
    stack.set("TIDEGATE_BROKER__START_TIMEOUT", "1s");
    stack.set("TIDEGATE_BROKER__CONNECT_TIMEOUT", "1s");
    refused(&mut stack, exit::UNAVAILABLE, &["no answer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password() {
    let mut stack = Stack::new(broker(), "").unwrap();
    let url = broker().url_for("guest", "wrong", stack.vhost().name());
    stack.set("TIDEGATE_BROKER__URL", url);
    refused(&mut stack, exit::CONFIG, &["refuses the login", "password"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vhost_that_does_not_exist() {
    let mut stack = Stack::new(broker(), "").unwrap();
    stack.set(
        "TIDEGATE_BROKER__URL",
        broker().url_for("guest", "guest", "no-such-vhost"),
    );
    refused(
        &mut stack,
        exit::CONFIG,
        &["no-such-vhost", "rabbitmqctl add_vhost"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vhost_that_is_closed_to_the_user() {
    broker().add_user("nobody", "secret").unwrap();
    let mut stack = Stack::new(broker(), "").unwrap();
    let url = broker().url_for("nobody", "secret", stack.vhost().name());
    stack.set("TIDEGATE_BROKER__URL", url);
    refused(&mut stack, exit::CONFIG, &["set_permissions"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments() {
    let mut stack = Stack::new(broker(), "").unwrap();
    let connection = Connection::connect(&stack.vhost().url(), ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("classic".into()),
    );
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("tidegate.work.gsc.slice.0".into(), durable, arguments)
        .await
        .unwrap();
    let words = [
        "tidegate.work.gsc.slice.0",
        "other arguments",
        "received the value",
    ];
    refused_by("coordinator", &mut stack, exit::CONFIG, &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topology_that_nobody_declared() {
    let mut stack = Stack::new(broker(), "").unwrap();
    stack.set("TIDEGATE_BROKER__TOPOLOGY", "check");
    stack.set("TIDEGATE_BROKER__START_TIMEOUT", "1s");
    refused_by(
        "coordinator",
        &mut stack,
        exit::CONFIG,
        &["tidegate.", "does not exist"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_wrong_settings() {
    let cases: [(&str, &str, &[&str]); 5] = [
        (
            "TIDEGATE_WORKER__SLOT",
            "3",
            &["slot", "did you mean", "slots"],
        ),
        ("TIDEGATE_WORKER__SLOTS", "none", &["worker.slots"]),
        (
            "TIDEGATE_BROKER__URL",
            "http://127.0.0.1",
            &["broker.url", "amqp://"],
        ),
        (
            "TIDEGATE_SINK__URL",
            "mysql://127.0.0.1/x",
            &["sink", "sqlite://", "postgres://"],
        ),
        (
            "TIDEGATE_API__LISTEN",
            "0.0.0.0:8420",
            &["api.token", "127.0.0.1"],
        ),
    ];
    for (variable, value, words) in cases {
        let mut stack = Stack::new(broker(), "").unwrap();
        stack.set(variable, value);
        refused(&mut stack, exit::CONFIG, words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_config_file_is_no_mistake() {
    let mut stack = Stack::new(broker(), "").unwrap();
    std::fs::remove_file(stack.scratch().path().join("tidegate.toml")).unwrap();
    stack.start_coordinator().await.unwrap();
    stack.start_worker("worker").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_in_the_file() {
    let mut stack = Stack::new(
        broker(),
        "[pipelines.x]\nhandler = \"noop\"\nmax_atempts = 3\n",
    )
    .unwrap();
    refused(
        &mut stack,
        exit::CONFIG,
        &["max_atempts", "max_attempts", "tidegate.toml"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_not_there() {
    let mut stack = Stack::new(broker(), "").unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/nothing", port::free());
    stack.set("TIDEGATE_SINK__URL", url);
    stack.set("TIDEGATE_BROKER__START_TIMEOUT", "1s");
    stack.start_coordinator().await.unwrap();
    refused_by("worker", &mut stack, exit::UNAVAILABLE, &["sink"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_be_read() {
    let cases = [
        ("missing.json", None, "missing.json"),
        ("no-json.json", Some("-----BEGIN"), "no-json.json"),
        (
            "other.json",
            Some("{\"type\":\"external_account\"}"),
            "service_account or authorized_user",
        ),
        (
            "half.json",
            Some("{\"type\":\"service_account\"}"),
            "private_key is missing",
        ),
    ];
    for (name, content, word) in cases {
        let mut stack = Stack::new(broker(), "").unwrap();
        let path = stack.scratch().path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        stack.set(
            "TIDEGATE_SEARCH_CONSOLE__CREDENTIALS",
            path.display().to_string(),
        );
        stack.start_coordinator().await.unwrap();
        refused_by("worker", &mut stack, exit::CONFIG, &[word]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut stack = Stack::new(broker(), "").unwrap();
    stack.set("TIDEGATE_API__LISTEN", &address);
    let service = stack.spawn_coordinator().unwrap();
    assert_ne!(service.exit_code(SOON).unwrap(), 0);
    let output = service.output().unwrap();
    assert!(output.contains(&address), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_whose_work_nobody_does() {
    let mut stack = Stack::new(broker(), "[pipelines.thumbnails]\n").unwrap();
    let words = ["pipelines.thumbnails: nothing here does its work", "serve("];
    refused_by("worker", &mut stack, exit::CONFIG, &words);
    // Another program may do it.
    stack.start_coordinator().await.unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "gsc.plan");
    stack.start_worker("other").await.unwrap();
}
