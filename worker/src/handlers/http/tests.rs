//! Real servers: a decent one, and one that writes whatever it is told.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response as Answer};
use axum::routing::post;
use axum::serve::ListenerExt;
use serde_json::Value;
use shared::batch::Batch;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::collect::AnyJson;
use crate::cursor::Cursor;
use crate::handler::Rows;
use crate::holding::Reporter;
use crate::permits::Unlimited;

/// A deadline that a passing test never reaches.
const NEVER: Duration = Duration::from_mins(1);

fn config(url: &str) -> PipelineConfig {
    PipelineConfig {
        url: Some(url.parse().unwrap()),
        allow_private: true,
        ..PipelineConfig::default()
    }
}

fn http(config: &PipelineConfig) -> Http {
    let pipeline = PipelineName::new("thumbs").unwrap();
    Http::new(&pipeline, config, Arc::new(AnyJson)).unwrap()
}

fn context(deadline: Duration) -> BatchContext {
    let batch = Batch {
        id: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("thumbs").unwrap(),
        key: Key::new("100% ä").unwrap(),
        attempt: Attempt::new(3),
        payload: RawValue::from_string("[1,\n 2]".to_owned()).unwrap(),
    };
    BatchContext {
        batch: batch.into(),
        deadline: Instant::now() + deadline,
        cancelled: CancellationToken::new(),
        permits: Unlimited::shared(),
        saved: Cursor::default(),
        reporter: Reporter::default(),
    }
}

async fn handle(http: &Http, ctx: &BatchContext) -> Result<Output, HandlerError> {
    http.handle(ctx.batch.payload.clone(), ctx).await
}

fn rows(output: &Output) -> Vec<&str> {
    match &output.rows {
        Rows::None => Vec::new(),
        Rows::Json(rows) => rows.iter().collect(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn failed(result: Result<Output, HandlerError>, expected: &str) -> String {
    match result {
        Err(HandlerError::Fail { reason, error }) => {
            assert_eq!(reason, expected, "{error}");
            error
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn retried(result: Result<Output, HandlerError>) -> String {
    match result {
        Err(HandlerError::Retry { error, after: None }) => error,
        other => panic!("{other:?}"),
    }
}

/// What a decent server was asked, and how often somebody connected to it.
#[derive(Clone, Default)]
struct Seen {
    requests: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    connections: Arc<AtomicUsize>,
}

/// A server that answers every POST in the same way.
async fn server<A>(answer: A) -> (String, Seen)
where
    A: IntoResponse + Clone + Send + Sync + 'static,
{
    let seen = Seen::default();
    let respond = move |State(seen): State<Seen>, headers: HeaderMap, body: Bytes| async move {
        seen.requests.lock().unwrap().push((headers, body));
        answer.into_response()
    };
    let router: Router<()> = Router::new()
        .route("/{*path}", post(respond))
        .with_state(seen.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/work", listener.local_addr().unwrap());
    let connections = seen.connections.clone();
    let listener = listener.tap_io(move |_| {
        connections.fetch_add(1, Ordering::Relaxed);
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, seen)
}

/// A server that reads a request and then writes this, `times` times, and closes.
async fn raw_server(text: impl Into<Vec<u8>>, times: usize) -> String {
    let text: Vec<u8> = text.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            read_request(&mut connection).await;
            for _ in 0..times {
                if connection.write_all(&text).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    });
    url
}

async fn read_request(connection: &mut TcpStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        let mut piece = [0; 4096];
        let length = connection.read(&mut piece).await.unwrap();
        assert_ne!(length, 0, "the request broke off");
        request.extend_from_slice(&piece[..length]);
    }
}

async fn answered_with(
    answer: impl IntoResponse + Clone + Send + Sync + 'static,
) -> Result<Output, HandlerError> {
    let (url, _) = server(answer).await;
    handle(&http(&config(&url)), &context(NEVER)).await
}

async fn answered_raw(text: impl Into<Vec<u8>>, times: usize) -> Result<Output, HandlerError> {
    let url = raw_server(text, times).await;
    handle(&http(&config(&url)), &context(NEVER)).await
}

fn with_type(
    content_type: &'static str,
    body: &'static str,
) -> ([(&'static str, &'static str); 1], &'static str) {
    ([("content-type", content_type)], body)
}

fn json(body: &'static str) -> impl IntoResponse + Clone + Send + Sync + 'static {
    with_type("application/json", body)
}

#[tokio::test]
async fn a_request_says_all_about_the_batch_and_is_signed() {
    let (url, seen) = server(json("{\"rows\":[]}")).await;
    let http = http(&PipelineConfig {
        token: Some("bearer-token".into()),
        secret: Some("0123456789abcdef".into()),
        secret_id: "2026-02".into(),
        ..config(&url)
    });
    let ctx = context(NEVER);
    handle(&http, &ctx).await.unwrap();
    let (headers, body) = seen.requests.lock().unwrap().remove(0);
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("idempotency-key"), ctx.batch.id.to_string());
    assert_eq!(header("x-tidegate-batch"), ctx.batch.id.to_string());
    assert_eq!(header("x-tidegate-run"), ctx.batch.run.to_string());
    assert_eq!(header("x-tidegate-pipeline"), "thumbs");
    assert_eq!(header("x-tidegate-key"), "100%25%20%C3%A4");
    assert_eq!(header("x-tidegate-attempt"), "3");
    assert_eq!(header("authorization"), "Bearer bearer-token");
    assert_eq!(header("x-tidegate-signature-key"), "2026-02");
    let text: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(text["batch"], ctx.batch.id.to_string());
    assert_eq!(
        (&text["key"], &text["attempt"]),
        (&"100% ä".into(), &3.into())
    );
    assert_eq!(text["payload"], serde_json::json!([1, 2]));
    assert!((30_000..=60_000).contains(&text["deadline_ms"].as_u64().unwrap()));

    // As a receiver would check it, with a library of its own.
    let script = "import hashlib, hmac, sys
print('v1=' + hmac.new(b'0123456789abcdef', sys.argv[1].encode() + b'.' + sys.argv[2].encode(), hashlib.sha256).hexdigest())";
    let expected = Command::new("python3")
        .args(["-c", script, &header("x-tidegate-timestamp")])
        .arg(std::str::from_utf8(&body).unwrap())
        .output()
        .unwrap();
    let expected = String::from_utf8(expected.stdout).unwrap();
    assert_eq!(header("x-tidegate-signature"), expected.trim());
}

#[tokio::test]
async fn an_answer_is_rows_follow_ups_and_statistics() {
    let full = r#"{"rows": [{"a": 1}, 2], "follow_ups": [{"pipeline": "index", "key": "k", "payload": {}}],
        "statistics": {"seen": 7}, "batch_key": "k", "unknown": true}"#;
    let output = answered_with(json(full)).await.unwrap();
    assert_eq!(rows(&output), ["{\"a\": 1}", "2"]);
    assert_eq!(output.follow_ups[0].pipeline.as_str(), "index");
    assert_eq!(output.statistics["seen"], 7);
    assert_eq!(output.batch_key.unwrap().as_str(), "k");
    let other = with_type("application/problem+json; charset=utf-8", "{\"rows\":[1]}");
    assert_eq!(rows(&answered_with(other).await.unwrap()), ["1"]);
    let ndjson = with_type("application/x-ndjson", "{\"a\": 1}\n\n2\n");
    assert_eq!(
        rows(&answered_with(ndjson).await.unwrap()),
        ["{\"a\": 1}", "2"]
    );
    let nothing = answered_with(axum::http::StatusCode::NO_CONTENT)
        .await
        .unwrap();
    assert!(rows(&nothing).is_empty());
}

#[tokio::test]
async fn an_answer_that_is_no_result_fails_the_batch() {
    const DEEP: &str = concat!("{\"rows\":[", "[[[[[[[[[[", "]]]]]]]]]]", "]}");
    let cases = [
        (
            with_type("text/html", "<h1>Please log in</h1>"),
            "text/html, not application/json or application/x-ndjson: <h1>Please",
        ),
        (with_type("application/jsonp", "{}"), "application/jsonp"),
        (with_type("application/json", ""), "not as agreed"),
        (
            with_type("application/json", "{\"rows\":[1"),
            "not as agreed",
        ),
        (
            with_type("application/json", "{\"rows\":[1]} x"),
            "trailing",
        ),
        (
            with_type("application/json", "{\"error\":\"quota\"}"),
            "missing field `rows`",
        ),
        (with_type("application/json", "[1,2]"), "not as agreed"),
        (
            with_type("application/json", "{\"rows\":{}}"),
            "expected a list",
        ),
        (
            with_type("application/json", "{\"rows\":[NaN]}"),
            "not as agreed",
        ),
        (
            with_type("application/json", "{\"rows\":[1e999]}"),
            "row 0 is not one JSON value",
        ),
        (
            with_type("application/json", "{\"rows\":[1,\"\\u0000\"]}"),
            "row 1 contains a NUL",
        ),
        (
            with_type("application/json", "{\"rows\":[\"\\ud800\"]}"),
            "row 0",
        ),
        (
            with_type(
                "application/json",
                "{\"rows\":[],\"statistics\":{\"a\":-1}}",
            ),
            "not as agreed",
        ),
        (
            with_type("application/json", "{\"rows\":[],\"statistics\":{\"\":1}}"),
            "names a statistic",
        ),
        (
            with_type("application/json", "{\"rows\":[],\"follow_ups\":[{}]}"),
            "pipeline",
        ),
        (
            with_type("application/x-ndjson", "1\n{\"half\":"),
            "line 2 of the output",
        ),
        (
            with_type("application/x-ndjson", "NaN\n"),
            "line 1 of the output",
        ),
    ];
    for (answer, expected) in cases {
        let error = failed(answered_with(answer).await, "bad_output");
        assert!(error.contains(expected), "{answer:?}: {error}");
    }
    assert!(answered_with(json(DEEP)).await.is_ok());
    let error = failed(
        answered_raw("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 1).await,
        "bad_output",
    );
    assert!(
        error.contains("no Content-Type") && error.contains("204"),
        "{error}"
    );
}

#[tokio::test]
async fn the_status_says_what_becomes_of_the_batch_and_the_body_why() {
    fn answer(status: u16, retry_after: &'static str) -> Answer {
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        (status, [("retry-after", retry_after)], "because \u{1b}[31m").into_response()
    }
    async fn result(status: u16, retry_after: &'static str) -> Result<Output, HandlerError> {
        let respond = move || async move { answer(status, retry_after) };
        let router: Router<()> = Router::new().route("/", post(respond));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        handle(&http(&config(&url)), &context(NEVER)).await
    }
    let throttled = |result| match result {
        Err(HandlerError::Throttled { reason, after }) => {
            assert!(reason.contains("because"), "{reason}");
            after.as_secs()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(throttled(result(429, "7").await), 7);
    assert_eq!(throttled(result(429, "soon").await), 30);
    assert_eq!(throttled(result(429, "-1").await), 30);
    assert_eq!(throttled(result(429, "1000000000").await), 24 * 60 * 60);
    assert_eq!(
        throttled(result(503, "Sun, 06 Nov 1994 08:49:37 GMT").await),
        1
    );
    let error = retried(result(503, "soon").await);
    assert_eq!(
        error,
        "answered with status 503 Service Unavailable: because \u{1b}[31m"
    );
    assert!(retried(result(500, "").await).contains("500"));
    let error = failed(result(404, "7").await, "http_404");
    assert!(error.contains("because"), "{error}");
    failed(result(418, "7").await, "http_4xx");
}

#[tokio::test]
async fn redirects_lead_nowhere() {
    let (elsewhere, seen) = server(json("{\"rows\":[]}")).await;
    for code in [301, 302, 303, 307, 308] {
        let text =
            format!("HTTP/1.1 {code} Moved\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\n\r\n");
        failed(answered_raw(text, 1).await, "http_redirect");
    }
    assert_eq!(seen.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_name_that_leads_into_the_own_network_is_not_called() {
    let (url, seen) = server(json("{\"rows\":[1]}")).await;
    let url = url.replace("127.0.0.1", "localhost");
    let mut config = config(&url);
    assert!(handle(&http(&config), &context(NEVER)).await.is_ok());
    config.allow_private = false;
    let error = failed(
        handle(&http(&config), &context(NEVER)).await,
        "private_address",
    );
    assert!(error.contains("is a private address"), "{error}");
    assert_eq!(seen.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn connections_are_kept() {
    let (url, seen) = server(json("{\"rows\":[1]}")).await;
    let http = http(&config(&url));
    for _ in 0..5 {
        handle(&http, &context(NEVER)).await.unwrap();
    }
    assert_eq!(seen.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn nobody_there_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let error = retried(handle(&http(&config(&url)), &context(NEVER)).await);
    assert!(
        error.contains("refused") && !error.contains(&url),
        "{error}"
    );
    let unknown = http(&config("http://no-such-host.invalid/"));
    retried(handle(&unknown, &context(NEVER)).await);
    let no_tls = raw_server("HTTP/1.1 200 OK\r\n\r\n", 1).await;
    let https = http(&config(&no_tls.replace("http://", "https://")));
    retried(handle(&https, &context(NEVER)).await);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_tried_again() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n";
    let cases = [
        String::new(),
        "HTTP/1.1 200 OK\r\ncontent-type: appl".to_owned(),
        "SSH-2.0-OpenSSH_9.6\r\n".to_owned(),
        format!("{head}content-length: 100\r\n\r\n1\n2\n"),
        format!("{head}transfer-encoding: chunked\r\n\r\n4\r\n1\n2\n\r\n"),
        format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n"),
    ];
    for text in cases {
        let error = retried(answered_raw(text.clone(), 1).await);
        assert!(!error.is_empty(), "{text}");
    }
    let whole = format!("{head}transfer-encoding: chunked\r\n\r\n4\r\n1\n2\n\r\n0\r\n\r\n");
    assert_eq!(rows(&answered_raw(whole, 1).await.unwrap()), ["1", "2"]);
}

#[tokio::test]
async fn ndjson_whose_end_is_not_certain_is_refused() {
    let head = "content-type: application/x-ndjson\r\nconnection: close\r\n";
    for version in ["1.0", "1.1"] {
        let text = format!("HTTP/{version} 200 OK\r\n{head}\r\n1\n2\n");
        let error = failed(answered_raw(text, 1).await, "bad_output");
        assert!(error.contains("Content-Length or chunked"), "{error}");
        let text = format!("HTTP/{version} 200 OK\r\n{head}content-length: 4\r\n\r\n1\n2\n");
        assert_eq!(rows(&answered_raw(text, 1).await.unwrap()), ["1", "2"]);
    }
    // A JSON object shows where it ends.
    let text = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"rows\":[1]}";
    assert_eq!(rows(&answered_raw(text, 1).await.unwrap()), ["1"]);
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for (content_type, blank) in [("application/json", " "), ("application/x-ndjson", "\n")] {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let mut text = head.into_bytes();
        text.extend(chunk.replace(' ', blank).repeat(1_100).into_bytes());
        let error = failed(answered_raw(text, 1).await, "output_too_large");
        assert!(error.contains("67108864 bytes"), "{error}");
    }
    let many = format!("{{\"rows\":[{}1]}}", "1,".repeat(100_000));
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{many}",
        many.len()
    );
    failed(answered_raw(text, 1).await, "output_too_large");
    let large = format!("{{\"rows\":[\"{}\"]}}", "x".repeat(1024 * 1024));
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{large}",
        large.len()
    );
    failed(answered_raw(text, 1).await, "output_too_large");
}

#[tokio::test]
async fn what_is_small_only_while_it_is_compressed_is_cut_off() {
    let script = "head -c 200000000 /dev/zero | tr '\\0' ' ' | gzip -1";
    let bomb = Command::new("sh")
        .args(["-c", script])
        .output()
        .unwrap()
        .stdout;
    assert!((1..10_000_000).contains(&bomb.len()));
    let headers = [
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
    ];
    let error = failed(answered_with((headers, bomb)).await, "output_too_large");
    assert!(error.contains("67108864 bytes"), "{error}");

    let small = Command::new("sh")
        .args(["-c", "echo '{\"rows\":[1]}' | gzip"])
        .output()
        .unwrap()
        .stdout;
    let mut broken = small.clone();
    assert_eq!(rows(&answered_with((headers, small)).await.unwrap()), ["1"]);
    broken.truncate(broken.len() - 8);
    retried(answered_with((headers, broken)).await);
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let forever = usize::MAX;
    let drip =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n ";
    let cases = [
        // Never a status line, an answer that never ends, interim answers without end.
        (raw_server("", forever).await, Duration::from_millis(300)),
        (stalling_server(drip).await.0, Duration::from_millis(500)),
        (
            raw_server("HTTP/1.1 102 Processing\r\n\r\n", forever).await,
            Duration::from_millis(500),
        ),
    ];
    for (url, deadline) in cases {
        let start = Instant::now();
        let error = retried(handle(&http(&config(&url)), &context(deadline)).await);
        assert!(error.contains("deadline, after 300s"), "{error}");
        assert!(start.elapsed() < deadline + Duration::from_secs(10));
    }
}

/// A server that writes this and then nothing more, without closing; and word of its request.
async fn stalling_server(text: &'static str) -> (String, oneshot::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (asked, word) = oneshot::channel();
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        read_request(&mut connection).await;
        // Not every test waits for it.
        let _ = asked.send(());
        connection.write_all(text.as_bytes()).await.unwrap();
        tokio::time::sleep(NEVER).await;
    });
    (url, word)
}

#[tokio::test]
async fn a_request_that_is_called_off_is_given_up() {
    let (url, asked) = stalling_server("").await;
    let http = http(&config(&url));
    let ctx = context(NEVER);
    let cancelled = ctx.cancelled.clone();
    let attempt = tokio::spawn(async move { handle(&http, &ctx).await });
    asked.await.unwrap();
    cancelled.cancel();
    assert!(retried(attempt.await.unwrap()).contains("called off"));
}

#[test]
fn secrets_do_not_print() {
    let http = http(&PipelineConfig {
        token: Some("hunter2".into()),
        secret: Some("hunter2-hunter2-".into()),
        ..config("https://a.example/")
    });
    assert!(!format!("{http:?}").contains("hunter2"));
}
