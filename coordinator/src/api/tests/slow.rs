//! Clients that hold on to something, and the end of the process.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::*;

/// More than any patience here, less than a test may take.
const LIMIT: Duration = Duration::from_secs(30);

async fn connect(api: &Fixture) -> TcpStream {
    TcpStream::connect(api.url.strip_prefix("http://").unwrap())
        .await
        .unwrap()
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(LIMIT, stream.read_to_end(&mut answer))
        .await
        .expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off() {
    let api = Fixture::new().await;
    let mut silent = connect(&api).await;
    let mut slow = connect(&api).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: local")
        .await
        .unwrap();
    let begun = Instant::now();
    rest(&mut slow).await;
    rest(&mut silent).await;
    assert!(begun.elapsed() >= PATIENCE.head / 2, "not at once");
    assert_eq!(api.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_body_that_stops_is_refused_and_leaves_nothing() {
    let api = Fixture::new().await;
    let mut slow = connect(&api).await;
    let head = "POST /api/v1/runs?pipeline=hashes HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n{\"payload\":1}\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    let answer = rest(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("body_ended_early"), "{answer}");
    assert_eq!(
        api.get("/api/v1/runs").await.body["runs"],
        Value::Array(vec![])
    );
}

#[tokio::test]
async fn what_no_proxy_should_pass_on_is_refused() {
    let api = Fixture::new().await;
    let both = "POST /api/v1/runs?pipeline=hashes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
                Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = connect(&api).await;
    stream.write_all(both.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(
        !answer.contains("alive"),
        "what follows is not read as a request: {answer}"
    );

    let huge = format!(
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let mut stream = connect(&api).await;
    let _ = stream.write_all(huge.as_bytes()).await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let api = Fixture::new().await;
    let mut holding = Vec::new();
    for _ in 0..64 {
        holding.push(connect(&api).await);
    }
    // Every place is taken; once the idle ones are cut off, this one has its turn.
    let answer = timeout(LIMIT, api.get("/healthz"))
        .await
        .expect("a place gets free");
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_end() {
    let api = Fixture::new().await;
    let mut stream = connect(&api).await;
    let head = "POST /api/v1/runs?pipeline=hashes HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/x-ndjson\r\nContent-Length: 13\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // An answered request on another connection says that the server has seen this one, too.
    assert_eq!(api.get("/healthz").await.status, 200);
    api.draining.cancel();
    stream.write_all(b"{\"payload\":1}").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    timeout(LIMIT, api.serving)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
}
