//! Faults as a client meets them, down to the socket.

use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{ALPHA, BETA, DAY, Fixture, LARGE, day, start, with};

/// Sends one query as plain text and reads until the connection ends: what came, and how it ended.
async fn raw(fixture: &Fixture, dimensions: &[&str]) -> (Vec<u8>, std::io::Result<()>) {
    let body = day(dimensions).to_string();
    let request = format!(
        "POST /webmasters/v3/sites/sc-domain%3Alarge.example/searchAnalytics/query?prettyPrint=false HTTP/1.1\r\n\
         Host: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        fixture.token,
        body.len()
    );
    let mut stream = TcpStream::connect(fixture.emulator.addr()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer).await.map(|_| ());
    (answer, ended)
}

/// The announced and the real length of a raw answer's body.
fn lengths(answer: &[u8]) -> (usize, usize) {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap();
    (line.parse().unwrap(), body.len())
}

#[tokio::test]
async fn error_faults_have_google_s_bodies() {
    let fixture = start().await;
    for (kind, status, start_of_body) in [
        (
            "500",
            500,
            r#"{"error":{"code":500,"message":"Backend Error","errors":[{"domain":"global","reason":"backendError"}]}}"#,
        ),
        ("500null", 500, r#"{"error":{"code":500,"message":null}}"#),
        ("503", 503, r#"{"error":{"code":503"#),
        (
            "429",
            429,
            r#"{"error":{"errors":[{"domain":"usageLimits","reason":"rateLimitExceeded""#,
        ),
        (
            "403rate",
            403,
            r#"{"error":{"code":403,"message":"Search Analytics QPS quota exceeded."#,
        ),
        (
            "403load",
            403,
            r#"{"error":{"code":403,"message":"Search Analytics load quota exceeded."#,
        ),
        ("400", 400, r#"{"error":{"code":400"#),
        ("401once", 401, r#"{"error":{"code":401"#),
        ("html_502", 502, "<!DOCTYPE html>"),
    ] {
        fixture.faults(&json!([{"kind": kind, "times": 1}]));
        let answer = fixture.query(ALPHA, &day(&["date"])).send().await.unwrap();
        assert_eq!(answer.status(), status, "{kind}");
        let text = answer.text().await.unwrap();
        assert!(text.starts_with(start_of_body), "{kind}: {text}");
        assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 200, "{kind}");
    }
}

#[tokio::test]
async fn retry_after_is_sent_when_configured() {
    let fixture = start().await;
    fixture.faults(&json!([{"kind": "429", "retry_after_s": 7}]));
    let answer = fixture.query(ALPHA, &day(&["date"])).send().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "7");
}

#[tokio::test]
async fn connections_are_reset_before_or_in_the_middle() {
    let fixture = start().await;
    fixture.faults(&json!([{"kind": "conn_reset_before"}]));
    let (answer, ended) = raw(&fixture, &["date"]).await;
    assert!(answer.is_empty());
    assert_eq!(
        ended.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );

    fixture.faults(&json!([{"kind": "conn_reset_mid_body"}]));
    let (answer, ended) = raw(&fixture, &["country"]).await;
    assert_eq!(
        ended.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    let (announced, real) = lengths(&answer);
    assert_eq!(real, announced / 2);
    let stats = fixture.stats().await;
    assert_eq!(stats["wasted_rows"], 14);
    assert_eq!(stats["by_status"]["0"], 1);
    assert_eq!(
        stats["faults"],
        json!({"conn_reset_before": 1, "conn_reset_mid_body": 1})
    );
}

#[tokio::test]
async fn a_reset_takes_the_other_streams_of_an_http2_connection_along() {
    let fixture = start().await;
    fixture.faults(
        &json!([{"kind": "conn_reset_before", "site": ALPHA}, {"kind": "stall", "site": BETA}]),
    );
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    let send = |site| client.execute(fixture.query(site, &day(&["date"])).build().unwrap());
    let stalled = send(BETA).await.unwrap();
    assert!(send(ALPHA).await.is_err());
    assert!(stalled.bytes().await.is_err());
    assert_eq!(fixture.emulator.stats().connections, 1);
}

#[tokio::test]
async fn bodies_end_early_or_promise_too_much() {
    let fixture = start().await;
    fixture.faults(&json!([{"kind": "truncated_json_with_200"}]));
    let answer = fixture
        .query(ALPHA, &day(&["country"]))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(serde_json::from_str::<Value>(&answer.text().await.unwrap()).is_err());

    fixture.faults(&json!([{"kind": "truncated_gzip"}]));
    let answer = fixture
        .query(ALPHA, &day(&["country"]))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.is_err());

    fixture.faults(&json!([{"kind": "wrong_content_length"}]));
    let (answer, ended) = raw(&fixture, &["country"]).await;
    let (announced, real) = lengths(&answer);
    assert!(ended.is_ok() && real < announced);
    assert!(
        fixture
            .query(ALPHA, &day(&["country"]))
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .is_err()
    );
}

#[tokio::test]
async fn bodies_stall_and_drip() {
    let fixture = start().await;
    fixture.faults(&json!([{"kind": "stall", "ms": 300, "at_byte": 10}]));
    let started = Instant::now();
    let request = fixture.query(ALPHA, &day(&["date"]));
    let request = request.header("accept-encoding", "identity");
    let mut answer = request.send().await.unwrap();
    assert_eq!(
        answer.chunk().await.unwrap().map(|chunk| chunk.len()),
        Some(10)
    );
    assert!(answer.chunk().await.unwrap().is_some());
    assert!(started.elapsed() >= Duration::from_millis(300));

    let length = fixture
        .query(ALPHA, &day(&["date"]))
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .len();
    // Half a second's worth; how exactly it drips is not promised.
    fixture.faults(&json!([{"kind": "slow_drip", "bytes_per_s": length * 2}]));
    let started = Instant::now();
    let answer = fixture.query(ALPHA, &day(&["date"])).send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap().len(), length);
    assert!(started.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn pages_repeat_shift_and_end_early() {
    let fixture = start().await;
    let page = async |start: u64| {
        let body = with(
            day(&["page", "query"]),
            &json!({"startRow": start, "rowLimit": 1000}),
        );
        fixture.rows(LARGE, &body).await
    };
    let (first, second) = (page(0).await, page(1000).await);

    fixture.faults(&json!([{"kind": "duplicate_row_between_pages", "start_row": 1000}]));
    let repeated = page(1000).await;
    assert_eq!(
        (repeated.first(), &repeated[1..]),
        (first.last(), &second[1..])
    );

    fixture.faults(&json!([{"kind": "shifted_page"}]));
    let shifted = page(1000).await;
    assert_eq!(
        (shifted.first(), &shifted[1..]),
        (first.last(), &second[..999])
    );
    assert_eq!(page(0).await, first);

    fixture.faults(&json!([{"kind": "short_page_not_last", "nth": 1}]));
    assert_eq!(page(0).await, first[..500]);
    assert_eq!(page(1000).await, second);
    // Only the last page was whole before and asked for again all the same.
    assert_eq!(fixture.emulator.stats().duplicates, 1);
}

#[tokio::test]
async fn permission_goes_at_its_time() {
    let fixture = start().await;
    let at = "2026-03-02T00:00:00Z";
    fixture.faults(&json!([{"kind": "revoke_permission", "site": BETA, "at": at}]));
    assert_eq!(fixture.ask(BETA, &day(&["date"])).await.0, 200);
    fixture.emulator.set_now(at.parse().unwrap());
    assert_eq!(fixture.ask(BETA, &day(&["date"])).await.0, 403);
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 200);
}

#[tokio::test]
async fn metadata_changes_its_spelling() {
    let fixture = start().await;
    fixture.faults(&json!([{"kind": "metadata_camel"}]));
    let body = json!({"startDate": DAY, "endDate": "2026-03-01", "dimensions": ["date"], "dataState": "all"});
    let (_, answer) = fixture.ask(ALPHA, &body).await;
    assert_eq!(
        answer["metadata"],
        json!({"firstIncompleteDate": "2026-02-28"})
    );
}

#[tokio::test]
async fn latency_is_kept() {
    let fixture = start().await;
    fixture
        .emulator
        .configure(json!({"latency": {"mode": "fixed", "ms": 200}}))
        .unwrap();
    let started = Instant::now();
    let (one, other) = (day(&["date"]), day(&["country"]));
    tokio::join!(fixture.ask(ALPHA, &one), fixture.ask(ALPHA, &other));
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(fixture.stats().await["max_in_flight_by_site"][ALPHA], 2);
}
