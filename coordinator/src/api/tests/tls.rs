//! The API over HTTPS: to who trusts its CA, and to nobody in plain.

use harness::certificates::{Authority, Files, Validity};
use shared::tls::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

fn open(files: &Files) -> ServerTls {
    let (certificate, key) = (files.certificate.clone(), files.key.clone());
    ServerTls::open(Identity { certificate, key }).unwrap()
}

/// A client that keeps no connections, so that each question is a handshake.
fn client(ca: &Authority) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(ca.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([ca]);
    client.pool_max_idle_per_host(0).build().unwrap()
}

#[tokio::test]
async fn a_certificate_that_is_replaced_is_shown_to_the_next_client() {
    let folder = tempfile::tempdir().unwrap();
    let issue = |ca: &Authority| ca.issue(folder.path(), "api", &["127.0.0.1"], Validity::Now);
    let (old, new) = (
        Authority::new("old").unwrap(),
        Authority::new("new").unwrap(),
    );
    let files = issue(&old).unwrap();
    let api = Fixture::over(Some(open(&files)), |_| {}).await;
    let asks = async |client: &reqwest::Client| {
        let url = format!("{}/api/v1/runs", api.url);
        client
            .get(url)
            .send()
            .await
            .is_ok_and(|a| a.status() == 200)
    };
    let (trusts_old, trusts_new) = (client(&old), client(&new));
    assert_eq!(
        (asks(&trusts_old).await, asks(&trusts_new).await),
        (true, false)
    );

    // Half of the pair is new: who comes now is shown the old pair.
    let key = std::fs::read(&files.key).unwrap();
    issue(&new).unwrap();
    let new_key = std::fs::read(&files.key).unwrap();
    std::fs::write(&files.key, key).unwrap();
    assert_eq!(
        (asks(&trusts_old).await, asks(&trusts_new).await),
        (true, false)
    );
    std::fs::write(&files.key, new_key).unwrap();
    assert_eq!(
        (asks(&trusts_old).await, asks(&trusts_new).await),
        (false, true)
    );
}

#[tokio::test]
async fn who_speaks_plain_http_to_it_is_not_answered_and_who_says_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new("ca").unwrap();
    let files = ca.issue(folder.path(), "api", &["127.0.0.1"], Validity::Now);
    let api = Fixture::over(Some(open(&files.unwrap())), |_| {}).await;
    let address = api.url.strip_prefix("https://").unwrap();
    for said in [&b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"[..], b""] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        let closed = timeout(PATIENCE.head * 5, stream.read_to_end(&mut answer)).await;
        // Closed with or without a word of TLS, and perhaps hard.
        let _ = closed.expect("closed within the patience");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
}
