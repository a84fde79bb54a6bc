//! Staying with a run: what is told meanwhile, what comes out at the end, and what ends it early.

use coordinator::run::{BatchCounts, Run, RunState};
use serde_json::json;
use shared::exit;

use super::fake::{self, Fake, RunAnswer};
use super::{Finished, run, submit, tidegate};

/// A run of ten batches with so many done and dead.
fn at(completed: u64, dead: u64) -> Run {
    let batches = BatchCounts {
        accepted: 10,
        pending: 10 - completed - dead,
        completed,
        dead,
        ..BatchCounts::default()
    };
    let state = if batches.pending == 0 {
        RunState::Completed
    } else {
        RunState::Running
    };
    Run {
        state,
        batches,
        rows: completed,
        ..fake::run()
    }
}

fn is(run: Run) -> RunAnswer {
    RunAnswer::Is(Box::new(run))
}

#[tokio::test]
async fn a_clean_run_ends_in_one_document_and_success() {
    let fake = Fake::start().await;
    fake.answers([is(at(0, 0)), is(at(4, 0)), is(at(10, 0))]);
    let file = submit::file("1\n");
    let path = file.path().to_str().unwrap();
    let output = run(&fake, &["submit", "hashes", path, "--watch", "--json"]).await;
    let document = output
        .ended_with(exit::OK)
        .says("10/10 batches, 0 retries, 0 dead")
        .document();
    assert_eq!(document["state"], "completed");
    assert_eq!(document["batches"]["completed"], 10);
    assert_eq!(
        (&document["rows"], &document["api_calls"]),
        (&json!(10), &json!(7))
    );
    assert!(!output.stderr.contains('\u{1b}'), "a pipe gets plain lines");

    let table = run(&fake, &["run", "watch", document["run"].as_str().unwrap()]).await;
    table.ended_with(exit::OK);
    assert!(
        table.stdout.contains("completed  10\n") && table.stdout.contains("api_calls  7\n"),
        "{}",
        table.stdout
    );
}

#[tokio::test]
async fn dead_batches_are_named_and_no_success() {
    let fake = Fake::start().await;
    fake.has(0, 2, 0);
    fake.answers([is(at(3, 1)), is(at(8, 2))]);
    let id = fake::run().run.to_string();
    let output = run(&fake, &["run", "watch", &id, "--json"]).await;
    output
        .ended_with(exit::FAILED)
        .says("attempts_exhausted")
        .says("it broke badly");
    assert_eq!(output.document()["batches"]["dead"], 2);
    assert!(fake.last_query().ends_with("&limit=5"));
}

#[tokio::test]
async fn a_coordinator_that_goes_away_meanwhile_is_waited_for() {
    let fake = Fake::start().await;
    fake.answers([
        is(at(1, 0)),
        RunAnswer::Breaks,
        RunAnswer::Busy,
        is(at(9, 0)),
        is(at(10, 0)),
    ]);
    let id = fake::run().run.to_string();
    let output = run(&fake, &["run", "watch", &id, "--json"]).await;
    output
        .ended_with(exit::OK)
        .says("lost the coordinator")
        .says("the coordinator is back");
    assert_eq!(output.stderr.matches("lost the coordinator").count(), 1);
    assert_eq!(output.document()["state"], "completed");
}

#[tokio::test]
async fn leaving_says_how_to_come_back() {
    let fake = Fake::start().await;
    fake.answers([is(at(1, 0))]);
    let id = fake::run().run.to_string();
    let child = tidegate(&fake, ["run", "watch", &id]).spawn().unwrap();
    // The second question shows that it watches.
    fake.asked_about_a_run(2).await;
    let pid = child.id().unwrap().to_string();
    let killed = tokio::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .await
        .unwrap();
    assert!(killed.success());
    let output = Finished::from(child.wait_with_output().await.unwrap());
    output
        .ended_with(130)
        .says("the run goes on")
        .says("tidegate run watch")
        .prints_nothing();
}

#[tokio::test]
async fn a_run_that_is_unknown_is_not_waited_for() {
    let fake = Fake::start().await;
    fake.refuse(
        404,
        json!({"title": "Not Found", "code": "not_found", "detail": "there is no such run"})
            .to_string(),
    );
    let id = fake::run().run.to_string();
    run(&fake, &["run", "watch", &id])
        .await
        .ended_with(exit::BAD_INPUT)
        .prints_nothing();
}

#[tokio::test]
async fn a_paused_run_is_waited_for_and_a_cancelled_one_until_nothing_is_out() {
    let fake = Fake::start().await;
    let stopped = |state: RunState, out: u64| {
        let mut run = at(4, 0);
        run.state = state;
        run.batches.pending = 0;
        run.batches.out = out;
        run.batches.cancelled = 6 - out;
        is(run)
    };
    let paused = Run {
        state: RunState::Paused,
        ..at(4, 0)
    };
    fake.answers([
        is(at(0, 0)),
        is(paused),
        is(at(4, 0)),
        stopped(RunState::Cancelled, 2),
        stopped(RunState::Cancelled, 0),
    ]);
    let id = fake::run().run.to_string();
    let output = run(&fake, &["run", "watch", &id, "--json"]).await;
    let document = output.ended_with(exit::FAILED).document();
    assert_eq!(document["state"], "cancelled");
    assert_eq!(document["batches"]["cancelled"], 6);
}
