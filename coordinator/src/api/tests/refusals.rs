//! Every code that the API answers with, each provoked.

use std::collections::BTreeSet;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::ledger::{DeadFilter, LedgerError, LedgerViews, MemoryLedger};
use crate::run::{DeadBatch, Run, RunState};
use crate::submission::{Pressure, Retry, WebhookCheck};

/// A ledger that is away, but for one question, to which it knows nonsense.
struct Broken;

#[async_trait]
impl LedgerViews for Broken {
    async fn run(&self, _: RunId) -> Result<Option<Run>, LedgerError> {
        Err(LedgerError::Damaged {
            table: "runs",
            column: "state",
            value: "odd".into(),
        })
    }

    async fn runs(
        &self,
        _: Option<RunState>,
        _: Option<RunId>,
        _: u32,
    ) -> Result<Vec<Run>, LedgerError> {
        Err(LedgerError::Unavailable(sqlx::Error::PoolTimedOut))
    }

    async fn dead(&self, _: &DeadFilter, _: u32) -> Result<Vec<DeadBatch>, LedgerError> {
        Err(LedgerError::Unavailable(sqlx::Error::PoolTimedOut))
    }
}

struct Under;

impl Pressure for Under {
    fn refuse(&self) -> Option<Retry> {
        Some(Retry {
            reason: "the broker blocks".into(),
            after: Duration::from_millis(16_500),
        })
    }
}

struct OneHost;

impl WebhookCheck for OneHost {
    fn check(&self, url: &str) -> Result<(), String> {
        url.starts_with("https://hooks.example/")
            .then_some(())
            .ok_or_else(|| "its host is not listed".to_owned())
    }
}

/// Sends these bytes, closes that side, and reads the whole answer.
async fn raw(api: &Fixture, request: &str) -> String {
    let address = api.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

const GOOD: &str = "{\"payload\":1}\n";
const HASHES: &str = "?pipeline=hashes";
const NOBODY: &str = "00000000-0000-7000-8000-000000000000";

/// Query, lines; status, code, line and pointer of the refusal.
type Refused<'a> = (&'a str, &'a str, u16, &'a str, Option<u64>, Option<&'a str>);

/// Codes that were provoked.
#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    #[track_caller]
    fn expect(&mut self, answer: &Answer, status: u16, code: &str) {
        assert_eq!((answer.status, answer.code()), (status, code), "{answer:?}");
        self.0.insert(code.to_owned());
    }
}

#[tokio::test]
async fn every_refusal_has_a_status_and_a_code() {
    let mut seen = Seen::default();
    submissions(&mut seen).await;
    idempotency_keys(&mut seen).await;
    names_and_parameters(&mut seen).await;
    heads(&mut seen).await;
    strangers_and_faults(&mut seen).await;
    raw_requests(&mut seen).await;
    // Needs two at the same time; see `a_key_that_is_being_submitted_is_under_way`.
    seen.0.insert("submission_under_way".to_owned());
    let all: BTreeSet<String> = Code::ALL
        .iter()
        .map(|code| code.as_str().to_owned())
        .collect();
    assert_eq!(seen.0, all, "every code is provoked");
}

async fn submissions(seen: &mut Seen) {
    let api = Fixture::new().await;
    let large = "x".repeat(shared::payload::MAX_PAYLOAD_BYTES);
    let (large, endless) = (
        format!("{{\"payload\":\"{large}\"}}"),
        "x".repeat(2 * large.len()),
    );
    let many = GOOD.repeat(11);
    let long_name = format!("?pipeline={}", "p".repeat(10_000));
    #[rustfmt::skip]
    let submissions: [Refused<'_>; 28] = [
        ("", GOOD, 400, "bad_parameter", None, None),
        ("?pipeline=hashes&pipeline=hashes", GOOD, 400, "bad_parameter", None, None),
        ("?pipeline=hashes&priority=urgent", GOOD, 400, "bad_parameter", None, None),
        ("?pipeline=hashes&priority=-1", GOOD, 400, "bad_parameter", None, None),
        ("?pipeline=hashes&prioritty=low", GOOD, 400, "bad_parameter", None, None),
        ("?pipeline=hashes&webhook=https://evil.example/", GOOD, 422, "webhook_not_allowed", None, None),
        ("?pipeline=thumbnails", GOOD, 422, "unknown_pipeline", None, None),
        ("?pipeline=__proto__", GOOD, 422, "unknown_pipeline", None, None),
        (&long_name, GOOD, 422, "unknown_pipeline", None, None),
        (HASHES, "", 400, "empty_submission", None, None),
        (HASHES, " \n\r\n\n", 400, "empty_submission", None, None),
        (HASHES, "[]", 400, "malformed_line", Some(1), None),
        (HASHES, "{\"payload\":1,}", 400, "malformed_line", Some(1), None),
        (HASHES, "{'payload':1}", 400, "malformed_line", Some(1), None),
        (HASHES, "{\"payload\":NaN}", 400, "malformed_line", Some(1), None),
        (HASHES, "{\"payload\":1}\n\n{\"payload\":}", 400, "malformed_line", Some(3), None),
        (HASHES, "{\"key\":\"a\"}", 400, "malformed_line", Some(1), None),
        (HASHES, "{\"key\":7,\"payload\":1}", 400, "malformed_line", Some(1), None),
        (HASHES, "{\"payload\":\"\\ud800\"}", 400, "malformed_line", Some(1), Some("/payload")),
        (HASHES, "{\"payload\":\"\\u0000\"}", 422, "nul_not_allowed", Some(1), Some("/payload")),
        (HASHES, "{\"payload\":1}\n{\"key\":\"\",\"payload\":1}", 422, "bad_key", Some(2), Some("/key")),
        (HASHES, "{\"key\":\"a\\nb\",\"payload\":1}", 422, "bad_key", Some(1), Some("/key")),
        (HASHES, &large, 413, "payload_too_large", Some(1), Some("/payload")),
        (HASHES, &endless, 413, "payload_too_large", Some(1), None),
        (HASHES, &many, 429, "queue_full", None, None),
        ("?pipeline=hashes&idempotency_key=a", GOOD, 400, "bad_parameter", None, None),
        ("?pipeline=%00", GOOD, 422, "unknown_pipeline", None, None),
        ("?pipeline=hashes&webhook=", GOOD, 422, "webhook_not_allowed", None, None),
    ];
    for (query, lines, status, code, line, pointer) in submissions {
        let answer = api.submit(query, lines).await;
        seen.expect(&answer, status, code);
        assert_eq!(answer.body["line"].as_u64(), line, "{answer:?}");
        assert_eq!(answer.body["pointer"].as_str(), pointer, "{answer:?}");
    }
    for key in ["", "a b", &"k".repeat(256)] {
        let answer = api
            .send(Method::POST, "/api/v1/runs?pipeline=hashes", |request| {
                request
                    .header("content-type", "application/x-ndjson")
                    .header("idempotency-key", key)
                    .body(GOOD)
            })
            .await;
        seen.expect(&answer, 400, "bad_idempotency_key");
    }
    for kind in [
        None,
        Some("text/html"),
        Some("application/json"),
        Some("multipart/form-data; boundary=x"),
    ] {
        let answer = api
            .send(
                Method::POST,
                "/api/v1/runs?pipeline=hashes",
                |request| match kind {
                    Some(kind) => request.header("content-type", kind).body(GOOD),
                    None => request.body(GOOD),
                },
            )
            .await;
        seen.expect(&answer, 415, "unsupported_media_type");
    }
    assert_eq!(
        api.get("/api/v1/runs").await.body["runs"],
        Value::Array(vec![]),
        "nothing was kept"
    );
}

async fn idempotency_keys(seen: &mut Seen) {
    let api = Fixture::new().await;
    let keyed = async |lines: &'static str| {
        api.send(Method::POST, "/api/v1/runs?pipeline=hashes", |request| {
            request
                .header("content-type", "application/x-ndjson; charset=utf-8")
                .header("idempotency-key", "nightly")
                .body(lines)
        })
        .await
    };
    assert_eq!(keyed("{\"payload\":1}").await.status, 201);
    assert_eq!(keyed("{\"payload\":1}\r\n").await.status, 200);
    seen.expect(&keyed("{\"payload\":2}").await, 409, "idempotency_conflict");
}

async fn names_and_parameters(seen: &mut Seen) {
    let api = Fixture::new().await;
    let finished = {
        let run = api.run_of(1).await;
        api.post(&format!("/api/v1/runs/{run}/cancel")).await;
        run
    };
    #[rustfmt::skip]
    let others = [
        ("GET", format!("/api/v1/runs/{NOBODY}"), 404, "not_found"),
        ("GET", format!("/api/v1/runs/{NOBODY}/batches"), 404, "not_found"),
        ("POST", format!("/api/v1/runs/{NOBODY}/cancel"), 404, "not_found"),
        ("POST", format!("/api/v1/runs/{NOBODY}/pause"), 404, "not_found"),
        ("POST", format!("/api/v1/runs/{NOBODY}/resume"), 404, "not_found"),
        ("POST", format!("/api/v1/runs/{NOBODY}/priority?priority=low"), 404, "not_found"),
        ("GET", format!("/api/v1/batches/{NOBODY}"), 404, "not_found"),
        ("POST", "/api/v1/pipelines/nobody/pause".into(), 404, "not_found"),
        ("POST", "/api/v1/pipelines/%00/resume".into(), 404, "not_found"),
        ("GET", "/api/v1/runs/..%2f..%2fetc".into(), 404, "not_found"),
        ("GET", "/api/v1/runs/%ff".into(), 404, "not_found"),
        ("GET", "/api/v1/runs/".into(), 404, "not_found"),
        ("GET", "/api/v1//runs".into(), 404, "not_found"),
        ("GET", "/API/v1/runs".into(), 404, "not_found"),
        ("GET", "/api/v2".into(), 404, "not_found"),
        ("POST", format!("/api/v1/runs/{finished}/pause"), 409, "run_finished"),
        ("POST", format!("/api/v1/runs/{finished}/resume"), 409, "run_finished"),
        ("POST", format!("/api/v1/runs/{finished}/priority?priority=low"), 409, "run_finished"),
        ("POST", format!("/api/v1/runs/{finished}/priority"), 400, "bad_parameter"),
        ("GET", "/api/v1/runs?limit=0".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/runs?limit=-1".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/runs?limit=1000000000".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/runs?limit=99999999999999999999".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/runs?limit=abc".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/runs?state=odd".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/runs?before=forged".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/runs?x=1".into(), 400, "bad_parameter"),
        ("GET", format!("/api/v1/runs/{finished}?x=1"), 400, "bad_parameter"),
        ("GET", format!("/api/v1/runs/{finished}/batches?after=forged"), 400, "bad_parameter"),
        ("GET", "/api/v1/dead?run=7".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/dead?older_than=10".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/dead?older_than=-1h".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/dead?limit=1001".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/dead?odd=1".into(), 400, "bad_parameter"),
        ("GET", "/api/v1/dead/count?limit=1".into(), 400, "bad_parameter"),
        ("POST", "/api/v1/dead/redrive".into(), 400, "bad_parameter"),
        ("POST", "/api/v1/dead/redrive?all=true&reason=x".into(), 400, "bad_parameter"),
        ("POST", "/api/v1/dead/redrive?all=yes".into(), 400, "bad_parameter"),
        ("POST", "/api/v1/dead/redrive?all=true&rate=0".into(), 400, "bad_parameter"),
        ("POST", "/api/v1/dead/redrive?all=true&rate=100001".into(), 400, "bad_parameter"),
        ("POST", "/api/v1/dead/discard".into(), 400, "bad_parameter"),
        ("POST", "/api/v1/dead/discard?all=true&rate=1".into(), 400, "bad_parameter"),
        ("DELETE", "/api/v1/runs".into(), 405, "method_not_allowed"),
        ("GET", "/api/v1/dead/redrive".into(), 405, "method_not_allowed"),
        ("POST", "/healthz".into(), 405, "method_not_allowed"),
    ];
    for (method, path, status, code) in others {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = api.send(method, &path, |request| request).await;
        seen.expect(&answer, status, code);
    }
    // Cancelled and finished: the same answer as before.
    let again = api.post(&format!("/api/v1/runs/{finished}/cancel")).await;
    assert_eq!(again.status, 200, "{again:?}");
    let done = api.run_of(1).await;
    api.kill(done, "poison").await;
    seen.expect(
        &api.post(&format!("/api/v1/runs/{done}/cancel")).await,
        409,
        "run_finished",
    );
}

async fn heads(seen: &mut Seen) {
    let api = Fixture::new().await;
    let asked = |name: &'static str, value: &'static str| {
        api.send(Method::GET, "/api/v1/runs", move |request| {
            request.header(name, value)
        })
    };
    seen.expect(&asked("host", "evil.example").await, 421, "unknown_host");
    seen.expect(
        &asked("origin", "http://evil.example").await,
        403,
        "foreign_origin",
    );
    seen.expect(&asked("origin", "null").await, 403, "foreign_origin");
    let headers = |count: usize, bytes: usize| {
        api.send(Method::GET, "/api/v1/runs", move |mut request| {
            for n in 0..count {
                request = request.header(format!("x-{n}"), "x".repeat(bytes));
            }
            request
        })
    };
    assert_eq!(headers(40, 10).await.status, 200);
    seen.expect(&headers(70, 1).await, 431, "headers_too_large");
    seen.expect(&headers(2, 10_000).await, 431, "headers_too_large");
}

async fn strangers_and_faults(seen: &mut Seen) {
    let tokens = [(Role::Read, "look")];
    let guarded = Fixture::with_tokens(&tokens).await;
    seen.expect(&guarded.get("/api/v1/runs").await, 401, "unauthorized");
    let read_only = guarded
        .send(Method::POST, "/api/v1/dead/discard?all=true", |r| {
            r.bearer_auth("look")
        })
        .await;
    seen.expect(&read_only, 403, "forbidden");

    let broken = Fixture::with(|api| api.ledger = Arc::new(Broken)).await;
    seen.expect(&broken.get("/api/v1/runs").await, 503, "ledger_unavailable");
    seen.expect(
        &broken.get(&format!("/api/v1/runs/{NOBODY}")).await,
        500,
        "internal",
    );

    let pressed = Fixture::with(|api| api.submission.pressure = Arc::new(Under)).await;
    let refused = pressed.submit(HASHES, GOOD).await;
    seen.expect(&refused, 503, "backpressure");
    assert_eq!(refused.header("retry-after"), "17");
    assert!(
        refused.body["detail"]
            .as_str()
            .unwrap()
            .contains("the broker blocks")
    );
}

#[tokio::test]
async fn every_operation_on_the_ledger_says_when_it_is_away() {
    let api = Fixture::new().await;
    api.ledger.close().await;
    let document = serde_json::to_value(&api.document).unwrap();
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let listed = operation["responses"]["503"]["description"].as_str();
            if !listed.is_some_and(|listed| listed.contains("`ledger_unavailable`")) {
                continue;
            }
            let query = match path.rsplit('/').next().unwrap() {
                "runs" if method == "post" => HASHES,
                "priority" => "?priority=low",
                "redrive" | "discard" => "?all=true",
                _ => "",
            };
            let path = path
                .replace("{run}", NOBODY)
                .replace("{batch}", NOBODY)
                .replace("{pipeline}", "hashes");
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let answer = api
                .send(method, &format!("{path}{query}"), |request| {
                    request
                        .header("content-type", "application/x-ndjson")
                        .body(GOOD)
                })
                .await;
            let got = (answer.status, answer.code());
            assert_eq!(got, (503, "ledger_unavailable"), "{path}: {answer:?}");
            asked += 1;
        }
    }
    assert!(asked > 10, "{asked} operations");
}

async fn raw_requests(seen: &mut Seen) {
    let api = Fixture::new().await;
    // Those that a well-behaved client cannot provoke.
    for (request, status, code) in [
        ("GET /api/v1/runs HTTP/1.1\r\n\r\n", "400", "bad_host"),
        (
            "GET /api/v1/runs HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
            "400",
            "bad_host",
        ),
        (
            "GET http://evil.example/api/v1/runs HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "421",
            "unknown_host",
        ),
        (
            "POST /api/v1/runs?pipeline=hashes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
             Content-Length: 100\r\n\r\n{\"payload\":1}\n",
            "400",
            "body_ended_early",
        ),
    ] {
        let answer = raw(&api, request).await;
        let is_expected = answer.starts_with(&format!("HTTP/1.1 {status}"));
        assert!(
            is_expected && answer.contains(&format!("\"{code}\"")),
            "{request}: {answer}"
        );
        seen.0.insert(code.to_owned());
    }
}

#[tokio::test]
async fn words_are_what_is_sent() {
    for code in Code::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        assert!(code.status().is_client_error() || code.status().is_server_error());
    }
}

/// Runs that are being submitted: nobody sees them but their table.
async fn open_runs(api: &Fixture) -> i64 {
    let file = api.folder.path().join("ledger.db");
    let url = format!("sqlite://{}?mode=ro", file.display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let count = "SELECT count(*) FROM runs WHERE state = 'submitting'";
    sqlx::query_scalar(count).fetch_one(&pool).await.unwrap()
}

#[tokio::test]
async fn a_key_that_is_being_submitted_is_under_way() {
    let api = Fixture::with(|api| api.submission.room = Room::new(10_000)).await;
    let (send, lines) = mpsc::channel::<Result<String, std::io::Error>>(1);
    let slow = {
        let lines = futures::stream::unfold(lines, async |mut lines| {
            lines.recv().await.map(|line| (line, lines))
        });
        let request = api
            .client
            .post(format!("{}/api/v1/runs?pipeline=hashes", api.url))
            .header("content-type", "application/x-ndjson")
            .header("idempotency-key", "nightly")
            .body(reqwest::Body::wrap_stream(lines));
        tokio::spawn(request.send())
    };
    // A whole chunk: what is shorter is in the ledger only when it has ended.
    let chunk = "{\"payload\":1}\n".repeat(2_000);
    send.send(Ok(chunk)).await.unwrap();
    // Not before the first has arrived: it would be the second.
    while open_runs(&api).await == 0 {
        tokio::task::yield_now().await;
    }
    let second = api
        .send(Method::POST, "/api/v1/runs?pipeline=hashes", |request| {
            request
                .header("content-type", "application/x-ndjson")
                .header("idempotency-key", "nightly")
                .body("{\"payload\":1}\n")
        })
        .await;
    assert_eq!(
        (second.status, second.code()),
        (409, "submission_under_way")
    );
    drop(send);
    assert_eq!(slow.await.unwrap().unwrap().status(), 201);
}

#[tokio::test]
async fn an_allowed_webhook_is_kept() {
    let api = Fixture::with(|api| api.submission.webhooks = Arc::new(OneHost)).await;
    let query = "?pipeline=hashes&webhook=https%3A%2F%2Fhooks.example%2Fdone";
    let run = api.submit(query, "{\"payload\":1}").await;
    assert_eq!(run.status, 201, "{run:?}");
    let run = run.body["run"].as_str().unwrap().parse().unwrap();
    api.kill(run, "failed").await;
    let due = api
        .ledger
        .webhooks_due(jiff::Timestamp::MAX, 10)
        .await
        .unwrap();
    assert_eq!(due[0].url, "https://hooks.example/done");
}
