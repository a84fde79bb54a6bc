//! What operators do, with the real command line, to a real installation.

use std::fs;
use std::time::Duration;

use coordinator::run::{Run, RunState};
use harness::api::line;
use harness::rabbitmq::shared as broker;
use harness::stack::{Answer, Stack};
use scenario::script::{PIPELINE, Scripted};
use serde_json::{Value, json};
use shared::id::RunId;

const SOON: Duration = Duration::from_mins(1);
/// How long nothing must move for it to be stopped.
const STILL: Duration = Duration::from_secs(2);

const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\n";

async fn tidegate(stack: &Stack<'_>, arguments: &[&str]) -> Answer {
    let answer = stack.tidegate(arguments).await.unwrap();
    assert_eq!(answer.code, 0, "{arguments:?}: {answer:?}");
    answer
}

fn batches(prefix: &str, count: u32) -> String {
    (0..count)
        .map(|n| line(&format!("key-{}", n % 7), &json!(format!("{prefix}-{n}"))))
        .collect()
}

async fn run(stack: &Stack<'_>, id: RunId) -> Run {
    stack.api.run(id).await.unwrap()
}

async fn published(stack: &Stack<'_>) -> f64 {
    let metric = stack.api.metric("tidegate_published_total").await.unwrap();
    metric.unwrap_or_default()
}

/// The sum that must hold whenever anybody looks.
fn conserved(run: &Run) {
    let counts = &run.batches;
    let sum = counts.pending + counts.out + counts.finished();
    assert_eq!(counts.accepted, sum, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_more_leaves_after_a_cancel_and_all_that_waits_is_cancelled() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "2");
    scripted.start_worker("a").await.unwrap();
    let stack = &scripted.stack;
    let submitted = stack
        .api
        .submit(PIPELINE, batches("x", 20_000))
        .await
        .unwrap();
    let id = submitted.run;
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();

    let cancelled = tidegate(stack, &["run", "cancel", &id.to_string(), "--json"]).await;
    assert_eq!(cancelled.json().unwrap()["state"], "cancelled");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = published(stack).await;
    let what = "all that waits to be cancelled";
    let stopped = stack
        .api
        .wait_for_run(id, what, SOON, |run| run.batches.pending == 0)
        .await
        .unwrap();
    conserved(&stopped);
    assert!(stopped.batches.cancelled > 19_000, "{stopped:?}");
    tokio::time::sleep(STILL).await;
    assert!(
        (published(stack).await - after).abs() < 0.5,
        "more was published"
    );
    // What was out becomes what its outcome says; then the run has ended.
    scripted.let_go("a").unwrap();
    let ended = stack.api.wait_until_ended(id, SOON).await.unwrap();
    conserved(&ended);
    assert_eq!((ended.state, ended.batches.out), (RunState::Cancelled, 0));
    assert!(ended.finished_at.is_some());
    let again = stack
        .tidegate(&["run", "pause", &id.to_string()])
        .await
        .unwrap();
    assert!(
        again.code == 65 && again.stderr.contains("run_finished"),
        "{again:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_finished_by_a_coordinator_that_starts_again() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.start_coordinator().await.unwrap();
    let submitted = stack
        .api
        .submit("noop", batches("x", 50_000))
        .await
        .unwrap();
    let id = submitted.run;
    // In one breath: most of it is pending when the coordinator dies.
    tidegate(&stack, &["run", "cancel", &id.to_string()]).await;
    stack.coordinator().kill().unwrap();
    stack.start_coordinator().await.unwrap();
    let what = "all that waits to be cancelled";
    let stopped = stack
        .api
        .wait_for_run(id, what, SOON, |run| run.batches.pending == 0)
        .await
        .unwrap();
    conserved(&stopped);
    assert_eq!(stopped.state, RunState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_stands_still_and_completes_after_it_is_resumed() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.start_coordinator().await.unwrap();
    let submitted = stack.api.submit("noop", batches("x", 5_000)).await.unwrap();
    let id = submitted.run;
    let name = id.to_string();
    // Paused while nobody works: the window is full, the rest waits.
    tidegate(&stack, &["run", "pause", &name]).await;
    stack.start_worker("a").await.unwrap();
    let what = "what is out to be done";
    let paused = stack
        .api
        .wait_for_run(id, what, SOON, |run| run.batches.out == 0)
        .await
        .unwrap();
    assert!(
        paused.state == RunState::Paused && paused.batches.pending > 4_000,
        "{paused:?}"
    );
    // Another run does not stand still.
    let other = stack.api.submit("noop", batches("y", 100)).await.unwrap();
    let other = stack.api.wait_until_ended(other.run, SOON).await.unwrap();
    assert_eq!(other.batches.completed, 100);
    tokio::time::sleep(STILL).await;
    assert_eq!(run(&stack, id).await.batches, paused.batches);

    tidegate(&stack, &["run", "resume", &name]).await;
    let ended = stack.api.wait_until_ended(id, SOON).await.unwrap();
    assert_eq!(
        (ended.state, ended.batches.completed),
        (RunState::Completed, 5_000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_pipeline_stands_still_also_after_a_restart() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.start_coordinator().await.unwrap();
    tidegate(&stack, &["pipeline", "pause", "noop"]).await;
    stack.start_worker("a").await.unwrap();
    let id = stack
        .api
        .submit("noop", batches("x", 100))
        .await
        .unwrap()
        .run;
    stack.coordinator().kill().unwrap();
    stack.start_coordinator().await.unwrap();
    tokio::time::sleep(STILL).await;
    let still = run(&stack, id).await;
    assert_eq!(
        (still.state, still.batches.pending),
        (RunState::Running, 100)
    );
    let listed = tidegate(&stack, &["pipeline", "list"]).await.stdout;
    let is_paused = |line: &str| line.starts_with("noop") && line.contains("paused");
    assert!(listed.lines().any(is_paused), "{listed}");

    tidegate(&stack, &["pipeline", "resume", "noop"]).await;
    let ended = stack.api.wait_until_ended(id, SOON).await.unwrap();
    assert_eq!(ended.batches.completed, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_higher_priority_overtakes_those_of_its_key() {
    // A window of two: what is out already cannot be overtaken.
    let settings = "window_min = 2\nwindow_max = 2\n";
    let mut scripted = Scripted::start(broker(), settings).await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "1");
    scripted.start_worker("a").await.unwrap();
    let stack = &scripted.stack;
    let lines = |prefix: &str| -> String {
        let one = |n| line("tenant", &json!(format!("{prefix}-{n}")));
        (0..10).map(one).collect()
    };
    let first = stack
        .api
        .submit(PIPELINE, lines("first"))
        .await
        .unwrap()
        .run;
    scripted.wait_for_starts("a", 1, SOON).await.unwrap();
    let second = stack
        .api
        .submit(PIPELINE, lines("second"))
        .await
        .unwrap()
        .run;
    tidegate(stack, &["run", "prioritize", &second.to_string(), "high"]).await;
    scripted.let_go("a").unwrap();
    stack.api.wait_until_ended(first, SOON).await.unwrap();
    stack.api.wait_until_ended(second, SOON).await.unwrap();
    let starts = scripted.starts().unwrap();
    let order: Vec<&str> = starts.iter().map(|start| start.payload.as_str()).collect();
    assert_eq!(order.len(), 20, "{order:?}");
    let last_of_second = order
        .iter()
        .rposition(|payload| payload.contains("second"))
        .unwrap();
    // Two of the first were out, and one may have been on its way.
    assert!(last_of_second <= 10 + 3, "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_batches_are_found_redriven_and_discarded() {
    let pipeline = "[pipelines.fragile]\nhandler = \"exec\"\nmax_attempts = 1\n\
                    command = [\"sh\", \"-c\", \"cat; if [ -e broken ]; then echo no luck >&2; exit 1; fi\"]\n";
    let mut stack = Stack::new(broker(), pipeline).unwrap();
    let broken = stack.scratch().path().join("broken");
    fs::write(&broken, "").unwrap();
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let api = stack.api.clone();
    let id = api.submit("fragile", batches("x", 30)).await.unwrap().run;
    let run_id = id.to_string();
    let ended = api.wait_until_ended(id, SOON).await.unwrap();
    assert_eq!((ended.state, ended.batches.dead), (RunState::Completed, 30));

    let listed = tidegate(&stack, &["dead", "list", "--run", &run_id, "--json"])
        .await
        .stdout;
    let dead: Vec<Value> = listed
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(dead.len(), 30);
    assert_eq!(dead[0]["reason"], "attempts_exhausted");
    let batch = dead[0]["batch"].as_str().unwrap();
    let shown = tidegate(&stack, &["dead", "show", batch, "--json"])
        .await
        .json()
        .unwrap();
    let attempt = &shown["history"][0];
    assert!(
        attempt["worker"].as_str().unwrap().starts_with("worker-"),
        "{shown}"
    );
    assert!(
        attempt["error"].as_str().unwrap().contains("no luck"),
        "{shown}"
    );
    assert!(
        shown["payload"].as_str().unwrap().starts_with("x-"),
        "{shown}"
    );

    let dry = [
        "dead",
        "redrive",
        "--run",
        &run_id,
        "--key",
        "key-0",
        "--dry-run",
    ];
    assert_eq!(
        tidegate(&stack, &dry).await.stdout,
        "5 batches would be redriven\n"
    );
    assert_eq!(run(&stack, id).await.batches.dead, 30, "nothing was done");

    // Redriven while nothing has changed, one dies again; mended, the others complete.
    tidegate(&stack, &["dead", "redrive", "--batch", batch]).await;
    api.wait_until_ended(id, SOON).await.unwrap();
    let shown = tidegate(&stack, &["dead", "show", batch, "--json"])
        .await
        .json()
        .unwrap();
    assert_eq!(
        (&shown["state"], &shown["attempts"]),
        (&json!("dead"), &json!(2))
    );
    let discarded = tidegate(&stack, &["dead", "discard", "--batch", batch]).await;
    assert_eq!(discarded.stdout, "1 batch discarded\n");
    fs::remove_file(&broken).unwrap();
    let redriven = tidegate(
        &stack,
        &["dead", "redrive", "--run", &run_id, "--rate", "100"],
    )
    .await;
    assert_eq!(redriven.stdout, "29 batches redriven\n");
    let ended = api.wait_until_ended(id, SOON).await.unwrap();
    conserved(&ended);
    let counts = ended.batches;
    assert_eq!(
        (counts.completed, counts.dead, counts.cancelled),
        (29, 0, 1),
        "{ended:?}"
    );
    assert_eq!(ended.state, RunState::Completed);
    let none = tidegate(&stack, &["dead", "list", "--run", &run_id]).await;
    assert_eq!(none.stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_knows_a_healthy_installation_from_a_broken_one() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let healthy = tidegate(&stack, &["doctor", "--json"])
        .await
        .json()
        .unwrap();
    let find = |diagnosis: &Value, name: &str| {
        let checks = diagnosis["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name);
        check
            .unwrap_or_else(|| panic!("{name}: {diagnosis}"))
            .clone()
    };
    for name in [
        "broker",
        "broker.publishing",
        "broker.topology",
        "broker.quarantine",
        "broker.lanes",
        "ledger",
        "workers",
    ] {
        assert_eq!(find(&healthy, name)["finding"], "ok", "{name}: {healthy}");
    }
    let version = find(&healthy, "broker.version");
    assert!(
        version["detail"].as_str().unwrap().starts_with("RabbitMQ "),
        "{version}"
    );

    stack.vhost().delete_queue("tidegate.work.noop.1").unwrap();
    let broken = stack.tidegate(&["doctor"]).await.unwrap();
    assert_eq!(broken.code, 1, "{broken:?}");
    let line = broken
        .stdout
        .lines()
        .find(|line| line.starts_with("fail"))
        .unwrap();
    assert!(
        line.contains("broker.topology") && line.contains("tidegate.work.noop.1"),
        "{line}"
    );
    assert_eq!(run_of(&stack).await, 10, "it changed nothing that matters");
}

/// A run goes through: the coordinator mends what is missing when it needs it.
async fn run_of(stack: &Stack<'_>) -> u64 {
    let id = stack
        .api
        .submit("noop", batches("x", 10))
        .await
        .unwrap()
        .run;
    let ended = stack.api.wait_until_ended(id, SOON).await.unwrap();
    ended.batches.completed
}
