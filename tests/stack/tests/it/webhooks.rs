//! Whoever wants to know that a run has finished is told, whatever happens on the way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use coordinator::run::{Run, RunState};
use harness::api::line;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use harness::wait;
use serde_json::json;
use tokio::net::TcpListener;

const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\nsink = false\n";
const SOON: Duration = Duration::from_mins(1);
/// Long enough for a call that should not come.
const A_WHILE: Duration = Duration::from_secs(4);

/// A call: its key, what it says, and whether it was answered well.
type Calls = Arc<Mutex<Vec<(String, Run, bool)>>>;

/// Fails twice, and then holds up its third answer until the caller is gone.
async fn receive(State(calls): State<Calls>, headers: HeaderMap, body: String) -> StatusCode {
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let run = serde_json::from_str(&body).unwrap();
    let before = calls.lock().unwrap().len();
    calls.lock().unwrap().push((key, run, before > 2));
    match before {
        0 | 1 => StatusCode::INTERNAL_SERVER_ERROR,
        2 => std::future::pending().await,
        _ => StatusCode::OK,
    }
}

async fn calls_so_far(calls: &Calls, count: usize) {
    wait::until("a call", SOON, async || {
        Ok((calls.lock().unwrap().len() >= count).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_and_a_coordinator_that_is_killed() {
    let calls = Calls::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/told", listener.local_addr().unwrap());
    let router = Router::new().fallback(receive).with_state(calls.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });

    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    stack.set("TIDEGATE_WEBHOOKS__ALLOW", "127.0.0.1");
    stack.set("TIDEGATE_WEBHOOKS__ALLOW_PRIVATE", "true");
    stack.set("TIDEGATE_WEBHOOKS__RETRY_BASE", "100ms");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let lines = (0..3).map(|n| line("a", &json!(n))).collect();
    let submitting = stack.api.submit_with_webhook("noop", &url, lines);
    let run = submitting.await.unwrap();

    // The receiver has failed twice and is about to answer when the coordinator dies.
    calls_so_far(&calls, 3).await;
    stack.coordinator().kill().unwrap();
    stack.start_coordinator().await.unwrap();
    calls_so_far(&calls, 4).await;
    tokio::time::sleep(A_WHILE).await;

    let calls = calls.lock().unwrap().clone();
    let well = calls.iter().filter(|(_, _, well)| *well).count();
    assert_eq!((calls.len(), well), (4, 1), "{calls:?}");
    for (key, told, _) in &calls {
        assert_eq!(key, &calls[0].0, "one key for all calls");
        assert_eq!((told.run, told.state), (run.run, RunState::Completed));
        assert_eq!(told.batches.completed, 3);
    }
    let delivered = stack.api.metric("tidegate_webhook_calls_total");
    assert_eq!(delivered.await.unwrap(), Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_allowed_is_refused_at_submission() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.set("TIDEGATE_WEBHOOKS__ALLOW", "hooks.example.com");
    stack.start_coordinator().await.unwrap();
    let lines = || line("a", &json!(1));
    for (url, status) in [
        ("https://evil.example/", "422"),
        ("http://169.254.169.254/latest/meta-data", "422"),
    ] {
        let refused = stack.api.submit_with_webhook("noop", url, lines()).await;
        let refused = format!("{:#}", refused.unwrap_err());
        assert!(refused.contains(status), "{url}: {refused}");
    }
    let allowed = stack
        .api
        .submit_with_webhook("noop", "https://hooks.example.com/x", lines());
    allowed.await.unwrap();
    assert_eq!(stack.api.runs().await.unwrap().len(), 1);
}
