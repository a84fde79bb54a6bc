//! The examples, as they are in the repository.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::port;
use harness::processes::Service;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use nix::sys::signal::Signal;
use scenario::search_console::finished;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// An installation that was set up by copying an example's folder.
fn copied(example: &str, change: impl Fn(String) -> String) -> Stack<'static> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(example);
    let config = std::fs::read_to_string(folder.join("tidegate.toml")).unwrap();
    let mut stack = Stack::new(broker(), &change(config)).unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        if file.file_name() != "tidegate.toml" && file.path().is_file() {
            std::fs::copy(file.path(), stack.scratch().path().join(file.file_name())).unwrap();
        }
    }
    stack.set("TIDEGATE_WORKER__SLOTS", "4");
    stack
}

async fn rows(stack: &Stack<'_>) -> Vec<Value> {
    let sink = stack.sink().await.unwrap();
    let texts = sink
        .texts("select cast(json as text) from results")
        .await
        .unwrap();
    texts
        .iter()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_model_is_loaded_once_and_serves_many_batches() {
    let mut stack = copied("python", |config| {
        config.replace("processes = 2", "processes = 1")
    });
    stack.set("TIDEGATE_WORKER__PIPELINES", "sentiment");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let submit = [
        "submit",
        "sentiment",
        "reviews.ndjson",
        "--batch-size",
        "1",
        "--watch",
        "--json",
    ];
    let run = finished(&stack.tidegate(&submit).await.unwrap()).unwrap();
    assert_eq!((run.batches.accepted, run.rows, run.retries), (5, 5, 0));
    assert_eq!(run.statistics["words"], 27);
    let mut scores: Vec<(i64, i64)> = rows(&stack)
        .await
        .iter()
        .map(|row| (row["id"].as_i64().unwrap(), row["score"].as_i64().unwrap()))
        .collect();
    scores.sort_unstable();
    assert_eq!(scores, [(1, 2), (2, -2), (3, 0), (4, 0), (5, -3)]);

    let bad = stack
        .api
        .submit("sentiment", harness::api::line("k", &json!([{ "id": 6 }])))
        .await
        .unwrap();
    stack.api.wait_until_ended(bad.run, LIMIT).await.unwrap();
    let dead = stack.api.dead(bad.run).await.unwrap();
    assert_eq!(
        (dead[0].reason.as_str(), dead[0].attempts),
        ("rejected", 1),
        "{dead:?}"
    );
    assert!(dead[0].error.contains("item 6 has no text"), "{dead:?}");

    let worker = stack.worker("a");
    let started = worker
        .output()
        .unwrap()
        .matches("started a process")
        .count();
    assert_eq!(started, 1, "the model was loaded once for six batches");
    worker.signal(Signal::SIGTERM).unwrap();
    assert_eq!(worker.exit_code(LIMIT).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_does_the_work_and_its_verdicts_count() {
    let port = port::free();
    let mut stack = copied("http", |config| {
        let config = config.replace(":8500/", &format!(":{port}/"));
        format!("{config}\nmax_attempts = 2\nretry_base = \"10ms\"\nretry_cap = \"10ms\"\n")
    });
    let mut command = Command::new("python3");
    command
        .args(["server.py", &port.to_string()])
        .env("SECRET", "a secret for a test")
        .current_dir(stack.scratch().path());
    let mut server = Service::start_command(stack.scratch(), command, "server").unwrap();
    server.wait_for_line("listening", LIMIT).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "words");
    stack.set("TIDEGATE_PIPELINES__WORDS__SECRET", "a secret for a test");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let submit = [
        "submit",
        "words",
        "texts.ndjson",
        "--batch-size",
        "2",
        "--watch",
        "--json",
    ];
    let run = finished(&stack.tidegate(&submit).await.unwrap()).unwrap();
    assert_eq!((run.batches.accepted, run.rows, run.retries), (2, 4, 0));
    assert_eq!(run.statistics["texts"], 4);
    let mut counts: Vec<i64> = rows(&stack)
        .await
        .iter()
        .map(|row| row["words"].as_i64().unwrap())
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [0, 1, 4, 5]);

    let bad = stack
        .api
        .submit("words", harness::api::line("k", &json!([7])))
        .await
        .unwrap();
    stack.api.wait_until_ended(bad.run, LIMIT).await.unwrap();
    let dead = stack.api.dead(bad.run).await.unwrap();
    assert_eq!(
        (dead[0].reason.as_str(), dead[0].attempts),
        ("http_422", 1),
        "{dead:?}"
    );
    assert!(dead[0].error.contains("not a text: 7"), "{dead:?}");

    // Somebody who does not know the secret.
    stack.worker("a").kill().unwrap();
    stack.set("TIDEGATE_PIPELINES__WORDS__SECRET", "what could it be");
    stack.start_worker("b").await.unwrap();
    let forged = stack
        .api
        .submit("words", harness::api::line("k", &json!(["x"])))
        .await
        .unwrap();
    stack.api.wait_until_ended(forged.run, LIMIT).await.unwrap();
    assert_eq!(
        stack.api.dead(forged.run).await.unwrap()[0].reason,
        "http_401"
    );

    // Nobody is there: tried again, then dead, and said why.
    server.kill().unwrap();
    let lost = stack
        .api
        .submit("words", harness::api::line("k", &json!(["x"])))
        .await
        .unwrap();
    stack.api.wait_until_ended(lost.run, LIMIT).await.unwrap();
    let dead = stack.api.dead(lost.run).await.unwrap();
    assert_eq!(
        (dead[0].reason.as_str(), dead[0].attempts),
        ("attempts_exhausted", 2),
        "{dead:?}"
    );
}
