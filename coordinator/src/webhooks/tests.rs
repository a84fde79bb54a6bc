//! Webhooks of a real SQLite ledger, delivered to a real server.

use std::collections::BTreeMap;
use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use shared::config::{Config, HostPattern, Span, WebhookSecret};
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};
use tokio::net::TcpListener;

use super::*;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{DispatchLedger, Judged, NewBatch, NewRun, SettlementLedger, SubmissionLedger};
use crate::run::{Priority, Run, RunState};

const SOON: Duration = Duration::from_secs(20);

/// One call that a receiver got.
#[derive(Debug, Clone)]
struct Call {
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

type Calls = Arc<Mutex<Vec<Call>>>;

/// Notes each call. `/ok` is told; `/flaky` fails twice; `/slow` never answers; `/moved` sends on;
/// `/4xx` refuses; `/busy` asks for a second of patience, once.
async fn receive(
    State(calls): State<Calls>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let path = uri.path().to_owned();
    let before = {
        let mut calls = calls.lock().unwrap();
        let before = calls.iter().filter(|call| call.path == path).count();
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        calls.push(Call {
            path: path.clone(),
            headers: headers.collect(),
            body,
        });
        before
    };
    match path.as_str() {
        "/flaky" if before < 2 => StatusCode::BAD_GATEWAY.into_response(),
        "/busy" if before < 1 => {
            (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]).into_response()
        }
        "/moved" => (StatusCode::FOUND, [("location", "/ok")]).into_response(),
        "/4xx" => StatusCode::GONE.into_response(),
        "/broken" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        path if path.starts_with("/slow") => {
            sleep(Duration::from_mins(10)).await;
            StatusCode::OK.into_response()
        }
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

struct Fixture {
    ledger: Arc<SqliteLedger>,
    calls: Calls,
    port: u16,
    draining: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new(change: impl FnOnce(&mut WebhooksConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger.db");
        let ledger = Arc::new(SqliteLedger::open(&file).await.unwrap());
        let calls = Calls::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(receive).with_state(calls.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut config = WebhooksConfig {
            allow: vec![
                HostPattern::try_from("127.0.0.1".to_owned()).unwrap(),
                HostPattern::try_from("localhost".to_owned()).unwrap(),
            ],
            allow_private: true,
            timeout: Span::seconds(1),
            retry_base: Span::try_from("20ms".to_owned()).unwrap(),
            max_attempts: 4,
            ..Config::default().webhooks
        };
        change(&mut config);
        let draining = CancellationToken::new();
        let stage = WebhookStage::new(&config, ledger.clone(), draining.clone()).unwrap();
        tokio::spawn(stage.run());
        Self {
            ledger,
            calls,
            port,
            draining,
            _folder: folder,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// A run of one batch that has completed.
    async fn finish(&self, webhook: &str) -> RunId {
        let run = NewRun {
            id: RunId::generate(),
            pipeline: PipelineName::new("hashes").unwrap(),
            priority: Priority::Normal,
            idempotency_key: None,
            webhook: Some(webhook.to_owned()),
            created_at: Timestamp::now(),
        };
        let batch = NewBatch {
            id: BatchId::generate(),
            pipeline: run.pipeline.clone(),
            key: Key::new("a").unwrap(),
            payload: RawValue::from_string("1".to_owned()).unwrap(),
            due: run.created_at,
        };
        let completed = Judged {
            batch: batch.id,
            attempt: Attempt::new(1),
            worker: None,
            took: None,
            verdict: crate::ledger::Verdict::Complete {
                rows: 3,
                statistics: BTreeMap::new(),
                follow_ups: vec![],
            },
        };
        self.ledger.open_run(&run).await.unwrap();
        self.ledger.append(run.id, &[batch]).await.unwrap();
        self.ledger.accept(run.id, &[0; 32]).await.unwrap();
        let out = [(completed.batch, completed.attempt)];
        self.ledger
            .record_out(&out, Timestamp::now())
            .await
            .unwrap();
        self.ledger
            .settle(&[completed], Timestamp::now())
            .await
            .unwrap();
        run.id
    }

    fn calls(&self, path: &str) -> Vec<Call> {
        let calls = self.calls.lock().unwrap();
        calls
            .iter()
            .filter(|call| call.path == path)
            .cloned()
            .collect()
    }

    /// Waits until a receiver was called this often.
    async fn called(&self, path: &str, times: usize) -> Vec<Call> {
        let waiting = async {
            while self.calls(path).len() < times {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(SOON, waiting).await;
        waited.unwrap_or_else(|_| panic!("{path} was called {} times", self.calls(path).len()));
        self.calls(path)
    }

    /// Waits until nothing is to be called any more.
    async fn settled(&self) {
        let waiting = async {
            while self.ledger.next_webhook().await.unwrap().is_some() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, waiting)
            .await
            .expect("all webhooks have ended");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.draining.cancel();
    }
}

#[tokio::test]
async fn a_finished_run_is_told_once() {
    let fixture = Fixture::new(|config| {
        config.secret = Some(
            WebhookSecret::try_from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()).unwrap(),
        );
    })
    .await;
    let id = fixture.finish(&fixture.url("/ok?token=1")).await;
    let call = fixture.called("/ok", 1).await.remove(0);
    let told: Run = serde_json::from_str(&call.body).unwrap();
    assert_eq!(
        (told.run, told.state, told.rows),
        (id, RunState::Completed, 3)
    );
    assert_eq!(call.headers["content-type"], "application/json");
    assert_eq!(call.headers["x-tidegate-event"], "run.completed");
    assert!(call.headers["idempotency-key"].starts_with(&id.to_string()));
    assert_eq!(call.headers["webhook-id"], call.headers["idempotency-key"]);
    assert!(call.headers["webhook-signature"].starts_with("v1,"));
    fixture.settled().await;
    // Not even when the ledger is looked at again.
    sleep(LOOK_EVERY * 2).await;
    assert_eq!(fixture.calls("/ok").len(), 1);
}

#[tokio::test]
async fn a_receiver_that_fails_is_told_again_under_the_same_key() {
    let fixture = Fixture::new(|_| {}).await;
    fixture.finish(&fixture.url("/flaky")).await;
    let calls = fixture.called("/flaky", 3).await;
    fixture.settled().await;
    assert_eq!(fixture.calls("/flaky").len(), 3);
    for call in &calls {
        assert_eq!(
            call.headers["idempotency-key"],
            calls[0].headers["idempotency-key"]
        );
        assert_eq!(call.body, calls[0].body);
        assert!(!call.headers.contains_key("webhook-signature"));
    }
}

#[tokio::test]
async fn the_time_that_a_receiver_asks_for_is_given() {
    let fixture = Fixture::new(|_| {}).await;
    fixture.finish(&fixture.url("/busy")).await;
    fixture.called("/busy", 1).await;
    let asked = Instant::now();
    fixture.called("/busy", 2).await;
    assert!(
        asked.elapsed() > Duration::from_millis(900),
        "{:?}",
        asked.elapsed()
    );
}

#[tokio::test]
async fn what_cannot_be_delivered_is_given_up() {
    let fixture = Fixture::new(|_| {}).await;
    for path in ["/4xx", "/moved", "/broken"] {
        fixture.finish(&fixture.url(path)).await;
    }
    // Nobody listens there; no such host; not on the list.
    fixture.finish("http://127.0.0.1:1/").await;
    fixture.finish("http://evil.example/").await;
    fixture.settled().await;
    assert_eq!(fixture.calls("/4xx").len(), 1);
    assert_eq!(fixture.calls("/moved").len(), 1);
    assert_eq!(fixture.calls("/ok").len(), 0, "a redirect was followed");
    assert_eq!(fixture.calls("/broken").len(), 4);
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_not_called() {
    let fixture = Fixture::new(|config| config.allow_private = false).await;
    fixture
        .finish(&format!("http://localhost:{}/ok", fixture.port))
        .await;
    fixture.finish(&fixture.url("/ok")).await;
    fixture.settled().await;
    assert_eq!(fixture.calls("/ok").len(), 0);
}

#[tokio::test]
async fn an_allowed_name_is_called_where_it_leads() {
    let fixture = Fixture::new(|_| {}).await;
    fixture
        .finish(&format!("http://localhost:{}/ok", fixture.port))
        .await;
    fixture.called("/ok", 1).await;
}

#[tokio::test]
async fn a_slow_receiver_holds_up_nobody_else() {
    let fixture = Fixture::new(|config| {
        config.timeout = Span::seconds(60);
        config.concurrency_per_host = 2;
    })
    .await;
    // More than are looked at at a time.
    for n in 0..PAGE + 50 {
        fixture
            .finish(&format!("http://localhost:{}/slow/{n}", fixture.port))
            .await;
    }
    fixture.called("/slow/0", 1).await;
    fixture.finish(&fixture.url("/ok")).await;
    fixture.called("/ok", 1).await;
    let slow = fixture
        .calls
        .lock()
        .unwrap()
        .iter()
        .filter(|call| call.path.starts_with("/slow"))
        .count();
    assert_eq!(slow, 2);
}
