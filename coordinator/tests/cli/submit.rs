//! `tidegate submit`: what arrives, and that a bad input leaves nothing behind.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};
use shared::exit;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use super::fake::Fake;
use super::{Finished, run, tidegate};

/// A file with this text.
pub(crate) fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Runs `submit hashes -` with this on stdin.
async fn pipe(fake: &Fake, stdin: &[u8]) -> Finished {
    let mut child = tidegate(fake, ["submit", "hashes", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to_child = child.stdin.take().unwrap();
    let ((), output) = tokio::join!(
        async move {
            // It stops reading at a bad line.
            let _ = to_child.write_all(stdin).await;
        },
        child.wait_with_output(),
    );
    Finished::from(output.unwrap())
}

/// More than fits into all the buffers on the way.
fn much() -> Vec<u8> {
    let line = format!("{{\"x\":\"{}\"}}\n", "y".repeat(1_000));
    line.repeat(10_000).into_bytes()
}

#[tokio::test]
async fn a_file_becomes_batches_of_items() {
    let fake = Fake::start().await;
    let items =
        "\u{feff}{\"t\":\"a\",\"n\":1}\r\n\r\n{\"t\":\"b\",\"n\":2}\r\n{\"t\":\"a\",\"n\":3}";
    let file = file(items);
    let path = file.path().to_str().unwrap();
    let arguments = [
        "submit",
        "hashes",
        path,
        "--key-field",
        "t",
        "--batch-size",
        "2",
        "--priority",
        "high",
        "--idempotency-key",
        "once",
        "--webhook",
        "https://hooks.example/done",
        "--json",
    ];
    let output = run(&fake, &arguments).await;
    let document = output
        .ended_with(exit::OK)
        .says("3 items in 2 batches")
        .document();
    assert_eq!(
        (&document["state"], &document["batches"]["accepted"]),
        (&json!("running"), &json!(2))
    );
    output.says(&format!(
        "tidegate run watch {}",
        document["run"].as_str().unwrap()
    ));

    let submission = &fake.submissions()[0];
    assert_eq!(
        submission.query,
        "pipeline=hashes&priority=high&webhook=https%3A%2F%2Fhooks.example%2Fdone"
    );
    assert_eq!(submission.idempotency_key, "once");
    let expected = [
        json!({"key": "a", "payload": [{"t": "a", "n": 1}, {"t": "a", "n": 3}]}),
        json!({"key": "b", "payload": [{"t": "b", "n": 2}]}),
    ];
    assert_eq!(submission.batches, expected);
}

#[tokio::test]
async fn stdin_is_streamed_whole() {
    let fake = Fake::start().await;
    pipe(&fake, &much()).await.ended_with(exit::OK);
    let batches = &fake.submissions()[0].batches;
    assert_eq!(batches.len(), 10_000);
    assert!(
        batches
            .iter()
            .all(|batch| batch["payload"].as_array().map(Vec::len) == Some(1))
    );
}

#[tokio::test]
async fn a_bad_line_in_a_file_is_named_before_the_coordinator_is_asked() {
    let fake = Fake::start().await;
    for (text, expected) in [
        ("1\n2\n{\"half\":\n4\n", "line 3"),
        ("1\n\"\\u0000\"\n", "line 2: contains a NUL"),
        ("", "holds no items"),
        (
            &format!("1\n\"{}\"", "x".repeat(2 << 20)),
            "line 2 is longer than 1048576 bytes",
        ),
        (
            &format!("\"{}\"", "x".repeat(1 << 20)),
            "line 1: makes a payload of 1048580 bytes",
        ),
    ] {
        let file = file(text);
        let output = run(&fake, &["submit", "hashes", file.path().to_str().unwrap()]).await;
        output
            .ended_with(exit::BAD_INPUT)
            .says(expected)
            .says("nothing was submitted")
            .prints_nothing();
    }
    assert_eq!(fake.requests(), 0);
}

#[tokio::test]
async fn a_bad_line_late_on_stdin_leaves_nothing_behind() {
    let fake = Fake::start().await;
    let input = [much(), b"nope\n1\n".to_vec()].concat();
    let output = pipe(&fake, &input).await;
    output
        .ended_with(exit::BAD_INPUT)
        .says("stdin: line 10001: is not one JSON value")
        .prints_nothing();
    fake.submission_broke_off().await;
    assert!(fake.submissions().is_empty());
}

#[tokio::test]
async fn an_empty_stdin_leaves_nothing_behind() {
    let fake = Fake::start().await;
    pipe(&fake, b"\n\n")
        .await
        .ended_with(exit::BAD_INPUT)
        .says("stdin: holds no items")
        .prints_nothing();
    assert!(fake.submissions().is_empty());
}

#[tokio::test]
async fn what_is_no_ordinary_file_is_an_error_or_is_read_once() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let folder_path = folder.path().to_str().unwrap();
    run(&fake, &["submit", "hashes", folder_path])
        .await
        .ended_with(exit::BAD_INPUT)
        .says("directory");
    run(&fake, &["submit", "hashes", "/no/such/file"])
        .await
        .ended_with(exit::BAD_INPUT)
        .says("No such file");
    run(&fake, &["submit", "hashes", "/dev/zero"])
        .await
        .ended_with(exit::BAD_INPUT)
        .says("line 1 is longer");
    assert!(fake.submissions().is_empty());

    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    assert!(made.success());
    let writer = tokio::task::spawn_blocking({
        let fifo = fifo.clone();
        move || std::fs::write(fifo, "1\n2\n")
    });
    run(&fake, &["submit", "hashes", fifo.to_str().unwrap()])
        .await
        .ended_with(exit::OK);
    writer.await.unwrap().unwrap();
    assert_eq!(fake.submissions()[0].batches.len(), 2);
}

#[tokio::test]
async fn a_refused_submission_says_why_in_the_coordinators_words() {
    let fake = Fake::start().await;
    let problem = json!({
        "type": "about:blank", "title": "Unprocessable Content", "status": 422, "code": "unknown_pipeline",
        "detail": "there is no pipeline \"hashs\"; known are gsc.plan, hashes",
    });
    fake.refuse(422, problem.to_string());
    let file = file("1\n");
    let output = run(&fake, &["submit", "hashs", file.path().to_str().unwrap()]).await;
    output
        .ended_with(exit::BAD_INPUT)
        .says("known are gsc.plan, hashes [unknown_pipeline]")
        .prints_nothing();
    let problem =
        json!({"title": "Bad Request", "code": "malformed_line", "line": 3, "detail": "no"});
    fake.refuse(400, problem.to_string());
    let output = run(&fake, &["submit", "hashes", file.path().to_str().unwrap()]).await;
    output
        .ended_with(exit::BAD_INPUT)
        .says("batch 3 of the submission");
}

#[tokio::test]
async fn values_arrive_as_they_were_written() {
    let fake = Fake::start().await;
    let item = json!({"emoji": "🐟", "escaped": "\u{1b}\n\"\\", "big": u64::MAX, "float": 0.1, "nested": [[{}]]});
    let file = file(&format!("{item}\n"));
    run(&fake, &["submit", "hashes", file.path().to_str().unwrap()])
        .await
        .ended_with(exit::OK);
    assert_eq!(
        fake.submissions()[0].batches[0]["payload"],
        Value::Array(vec![item])
    );
}
