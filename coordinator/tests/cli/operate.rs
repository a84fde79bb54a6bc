//! What operators type: the request that it becomes, and what is printed of the answer.

use coordinator::doctor::Finding;
use shared::exit;

use super::fake::{self, Fake};
use super::run;

#[tokio::test]
async fn orders_become_requests() {
    let fake = Fake::start().await;
    let id = fake::run().run.to_string();
    let id = id.as_str();
    let cases: [(&[&str], String); 12] = [
        (
            &["run", "cancel", id],
            format!("POST /api/v1/runs/{id}/cancel"),
        ),
        (
            &["run", "pause", id],
            format!("POST /api/v1/runs/{id}/pause"),
        ),
        (
            &["run", "resume", id],
            format!("POST /api/v1/runs/{id}/resume"),
        ),
        (
            &["run", "prioritize", id, "high"],
            format!("POST /api/v1/runs/{id}/priority?priority=high"),
        ),
        (&["batch", "show", id], format!("GET /api/v1/batches/{id}")),
        (&["dead", "show", id], format!("GET /api/v1/batches/{id}")),
        (
            &[
                "dead",
                "list",
                "--key",
                "a b",
                "--reason",
                "poison",
                "--older-than",
                "2h",
            ],
            "GET /api/v1/dead?key=a+b&reason=poison&older_than=7200s&limit=100".into(),
        ),
        (
            &["dead", "redrive", "--run", id, "--rate", "50"],
            format!("POST /api/v1/dead/redrive?run={id}&rate=50"),
        ),
        (
            &["dead", "redrive", "--all", "--dry-run"],
            "POST /api/v1/dead/redrive?all=true&dry_run=true".into(),
        ),
        (
            &["dead", "discard", "--pipeline", "hashes", "--batch", id],
            format!("POST /api/v1/dead/discard?pipeline=hashes&batch={id}"),
        ),
        (
            &["pipeline", "pause", "hashes"],
            "POST /api/v1/pipelines/hashes/pause".into(),
        ),
        (
            &["pipeline", "resume", "hashes"],
            "POST /api/v1/pipelines/hashes/resume".into(),
        ),
    ];
    for (arguments, expected) in cases {
        run(&fake, arguments).await.ended_with(exit::OK);
        let asked = fake.last_request();
        assert_eq!(asked.trim_end_matches('?'), expected, "{arguments:?}");
    }
}

#[tokio::test]
async fn a_changed_run_is_printed_as_it_is_now() {
    let fake = Fake::start().await;
    let id = fake::run().run.to_string();
    let table = run(&fake, &["run", "pause", &id]).await;
    assert!(
        table
            .ended_with(exit::OK)
            .stdout
            .contains("state      paused\n"),
        "{table:?}"
    );
    let json = run(&fake, &["run", "pause", &id, "--json"]).await;
    assert_eq!(json.document()["state"], "paused");
    let refusal =
        r#"{"title":"Conflict","code":"run_finished","detail":"the run is completed already"}"#;
    fake.refuse(409, refusal);
    run(&fake, &["run", "cancel", &id])
        .await
        .ended_with(exit::BAD_INPUT)
        .says("run_finished")
        .prints_nothing();
}

#[tokio::test]
async fn a_batch_is_printed_with_its_attempts() {
    let fake = Fake::start().await;
    let id = fake::run().run.to_string();
    let text = run(&fake, &["batch", "show", &id]).await;
    for expected in [
        "state     dead",
        "reason    poison",
        "worker    worker-8",
        "progress  3 of 7",
        "payload   {\"n\":1}",
        "ATTEMPT",
        "worker-7",
        "42 ms",
    ] {
        assert!(text.stdout.contains(expected), "{expected:?}: {text:?}");
    }
    assert!(!text.stdout.contains('\u{1b}'));
    let json = run(&fake, &["dead", "show", &id, "--json"]).await;
    assert_eq!(json.document()["history"][0]["took_ms"], 42);
}

#[tokio::test]
async fn what_was_done_to_dead_batches_is_said() {
    let fake = Fake::start().await;
    let cases: [(&[&str], &str); 3] = [
        (&["dead", "redrive", "--all"], "1,200 batches redriven\n"),
        (&["dead", "discard", "--all"], "1,200 batches discarded\n"),
        (
            &["dead", "discard", "--all", "--dry-run"],
            "1,200 batches would be discarded\n",
        ),
    ];
    for (arguments, expected) in cases {
        let output = run(&fake, arguments).await;
        assert_eq!(output.ended_with(exit::OK).stdout, expected);
    }
    let json = run(&fake, &["dead", "redrive", "--all", "--json"]).await;
    assert_eq!(json.document()["batches"], 1_200);
}

#[tokio::test]
async fn pipelines_are_printed() {
    let fake = Fake::start().await;
    let table = run(&fake, &["pipeline", "list"]).await;
    let lines: Vec<Vec<&str>> = table
        .ended_with(exit::OK)
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[1], ["hashes", "open", "7", "3", "64", "16"]);
    let paused = run(&fake, &["pipeline", "pause", "hashes", "--json"]).await;
    assert_eq!(paused.document()["paused"], true);
}

#[tokio::test]
async fn schedules_are_printed() {
    let fake = Fake::start().await;
    let table = run(&fake, &["schedule", "list"]).await;
    let lines: Vec<&str> = table.ended_with(exit::OK).stdout.lines().collect();
    assert!(lines[0].starts_with("SCHEDULE"), "{lines:?}");
    assert!(
        lines[1].starts_with("nightly") && lines[1].contains("2026-01-02 11:00:00Z"),
        "{lines:?}"
    );
    let json = run(&fake, &["schedule", "list", "--json"]).await;
    assert_eq!(json.document()["cron"], "0 3 * * *");
}

#[tokio::test]
async fn limits_are_printed() {
    let fake = Fake::start().await;
    let table = run(&fake, &["limit", "list"]).await;
    let lines: Vec<&str> = table.ended_with(exit::OK).stdout.lines().collect();
    assert!(lines[0].starts_with("LIMIT"), "{lines:?}");
    for cell in [
        "gsc.site",
        "sc-domain:example.com",
        " 300 ",
        "2026-01-02 08:00:00Z",
    ] {
        assert!(lines[1].contains(cell), "{cell} in {lines:?}");
    }
    let json = run(&fake, &["limit", "list", "--json"]).await;
    assert_eq!(json.document()["granted"], 7);
}

#[tokio::test]
async fn the_doctor_says_what_to_do_and_fails_when_something_does() {
    let fake = Fake::start().await;
    for (finding, code) in [
        (Finding::Ok, exit::OK),
        (Finding::Warn, exit::OK),
        (Finding::Fail, exit::FAILED),
    ] {
        fake.finds(finding);
        let text = run(&fake, &["doctor"]).await;
        text.ended_with(code);
        let line = format!("{} ", finding.as_str());
        assert!(
            text.stdout
                .lines()
                .any(|l| l.starts_with(&line) && l.contains("broker")),
            "{text:?}"
        );
        assert!(text.stdout.contains("→ start it"), "{text:?}");
        let json = run(&fake, &["doctor", "--json"]).await;
        assert_eq!(
            json.ended_with(code).document()["finding"],
            finding.as_str()
        );
    }
}
