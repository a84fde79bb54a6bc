//! Batches over the wire.

use serde_json::Value;

use crate::support::{ALPHA, DAY, Fixture, UNVERIFIED, start, url_encoded};

fn part(id: &str, site: &str, authorization: &str) -> String {
    let site = url_encoded(site);
    format!(
        "--b\r\nContent-Type: application/http\r\nContent-ID: <{id}>\r\n\r\n\
         POST /webmasters/v3/sites/{site}/searchAnalytics/query?prettyPrint=false HTTP/1.1\r\n{authorization}\
         Content-Type: application/json\r\n\r\n{{\"startDate\":\"{DAY}\",\"endDate\":\"{DAY}\"}}\r\n"
    )
}

async fn send(fixture: &Fixture, path: &str, parts: &str) -> (u16, String) {
    let request = fixture
        .client
        .post(fixture.url(path))
        .bearer_auth(&fixture.token);
    let request = request
        .header("content-type", "multipart/mixed; boundary=b")
        .body(format!("{parts}--b--\r\n"));
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn parts_are_answered_one_by_one_with_their_ids() {
    let fixture = start().await;
    let parts = [
        part("one + 1", ALPHA, ""),
        part("two + 2", UNVERIFIED, ""),
        part("three + 3", ALPHA, "Authorization: Bearer wrong\r\n"),
    ];
    for path in ["/batch", "/batch/webmasters/v3"] {
        let (status, text) = send(&fixture, path, &parts.concat()).await;
        assert_eq!(status, 200);
        for (id, line) in [
            ("<response-one + 1>", "HTTP/1.1 200 OK"),
            ("<response-two + 2>", "HTTP/1.1 403 Forbidden"),
            ("<response-three + 3>", "HTTP/1.1 401 Unauthorized"),
        ] {
            let answer = text
                .split("Content-ID: ")
                .find(|piece| piece.starts_with(id))
                .unwrap();
            assert!(answer.contains(line), "{answer}");
            let body = answer
                .split("\r\n\r\n")
                .nth(2)
                .unwrap()
                .split("\r\n")
                .next()
                .unwrap();
            assert!(serde_json::from_str::<Value>(body).is_ok(), "{body}");
        }
    }
    let stats = fixture.emulator.stats();
    assert_eq!(
        (stats.requests, stats.batch_parts, stats.by_site[ALPHA]),
        (2, 6, 4)
    );
}

#[tokio::test]
async fn batches_are_limited_and_must_be_multipart() {
    let fixture = start().await;
    let too_many = part("x", "nobody", "").repeat(1001);
    assert_eq!(send(&fixture, "/batch", &too_many).await.0, 400);
    let plain = fixture
        .client
        .post(fixture.url("/batch"))
        .bearer_auth(&fixture.token)
        .body("x");
    assert_eq!(plain.send().await.unwrap().status(), 400);
}
