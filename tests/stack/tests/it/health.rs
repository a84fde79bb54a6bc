//! What a worker says about itself over HTTP is true.

use std::time::Duration;

use anyhow::Result;
use harness::rabbitmq::{RabbitMq, shared as broker};
use harness::stack::Stack;
use harness::{port, processes, wait};
use nix::sys::signal::Signal;
use scenario::script::{PIPELINE, Scripted};

const SOON: Duration = Duration::from_secs(30);

/// What `/readyz` answers.
async fn readiness(stack: &mut Stack<'_>, worker: &str) -> Result<(u16, String)> {
    let url = stack.worker_url(worker)?;
    let answer = reqwest::get(format!("{url}/readyz")).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

async fn wait_until_ready(stack: &mut Stack<'_>, expected: &str) {
    let what = format!("the worker to say {expected:?}");
    let mut said = String::new();
    let waited = wait::until(&what, SOON, async || {
        said = readiness(stack, "a").await?.1;
        Ok(said.contains(expected).then_some(()))
    });
    waited.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_ready_while_it_consumes() {
    let own = RabbitMq::start().unwrap();
    let mut scripted = Scripted::start(&own, "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.start_worker("a").await.unwrap();
    let stack = &mut scripted.stack;
    wait_until_ready(stack, "consuming").await;
    assert_eq!(readiness(stack, "a").await.unwrap().0, 200);

    own.stop_app().unwrap();
    wait_until_ready(stack, "connecting to the broker").await;
    assert_eq!(readiness(stack, "a").await.unwrap().0, 503);
    let url = stack.worker_url("a").unwrap();
    let alive = reqwest::get(format!("{url}/healthz")).await.unwrap();
    assert_eq!(alive.status().as_u16(), 200, "alive, if not ready");
    own.start_app().unwrap();
    wait_until_ready(stack, "consuming").await;

    let line = harness::api::line("key", &1.into());
    stack.api.submit(PIPELINE, line).await.unwrap();
    scripted.wait_for_starts("a", 1, SOON).await.unwrap();
    let stack = &mut scripted.stack;
    stack.worker("a").signal(Signal::SIGTERM).unwrap();
    wait_until_ready(stack, "draining").await;
    let redelivered = stack
        .worker_metric("a", "tidegate_sessions_lost_total")
        .await;
    assert_eq!(redelivered.unwrap(), Some(1.0), "answers until the end");
    scripted.let_go("a").unwrap();
    assert_eq!(scripted.stack.worker("a").exit_code(SOON).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_the_broker_cancels_is_built_again() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.start_worker("a").await.unwrap();
    let stack = &mut scripted.stack;
    wait_until_ready(stack, "consuming").await;
    let queue = format!("tidegate.work.{PIPELINE}.0");
    stack.vhost().delete_queue(&queue).unwrap();
    wait::until("the loss to be counted", SOON, async || {
        let url = stack.worker_url("a")?;
        let label = [r#"reason="consumer_cancelled""#];
        let name = "tidegate_sessions_lost_total";
        let count = harness::api::metric(&reqwest::Client::new(), &url, name, &label).await?;
        Ok((count == Some(1.0)).then_some(()))
    })
    .await
    .unwrap();
    wait_until_ready(stack, "consuming").await;
    let lines = (0..8)
        .map(|n| harness::api::line(&format!("key-{n}"), &n.into()))
        .collect();
    let run = stack.api.submit(PIPELINE, lines).await.unwrap();
    let ended = stack.api.wait_until_ended(run.run, SOON).await.unwrap();
    assert_eq!(ended.batches.completed, 8, "{ended:?}");
}

/// What a program's `health` says: its exit code, and its words.
fn health(stack: &Stack<'_>, program: &str) -> (i32, String) {
    let mut command =
        processes::command(program, stack.scratch().path(), &stack.environment).unwrap();
    let output = command.arg("health").output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), words)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_asks_the_process_beside_it() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    let stack = &mut scripted.stack;
    assert_eq!(health(stack, "coordinator").0, 0);
    let (code, words) = health(stack, "worker");
    assert_eq!(code, 78, "{words}");
    assert!(words.contains("worker.listen has port 0"), "{words}");

    // All addresses: it is asked at loopback.
    let listen = format!("0.0.0.0:{}", port::free());
    stack.set("TIDEGATE_WORKER__LISTEN", listen);
    let (code, words) = health(stack, "worker");
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("is not ready"), "{words}");
    scripted.start_worker("a").await.unwrap();
    wait_until_ready(&mut scripted.stack, "consuming").await;
    let stack = &mut scripted.stack;
    assert_eq!(health(stack, "worker").0, 0);

    stack.coordinator().kill().unwrap();
    assert_eq!(health(stack, "coordinator").0, 1);
}
