//! The compiled `tidegate` against a coordinator of a page ([`fake`]): what is sent, what is printed
//! where, and with which code it ends.
#![expect(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]

mod fake;
mod operate;
mod submit;
mod watch;

use std::ffi::OsStr;
use std::process::{Output, Stdio};

use fake::Fake;
use serde_json::{Value, json};
use shared::exit;
use tokio::process::Command;

/// `tidegate`, about to be run against `fake`.
fn tidegate<S: AsRef<OsStr>>(fake: &Fake, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .args(arguments)
        .env("TIDEGATE_URL", fake.url())
        .env_remove("TIDEGATE_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(fake: &Fake, arguments: &[&str]) -> Finished {
    Finished::from(tidegate(fake, arguments).output().await.unwrap())
}

/// How it ended.
#[derive(Debug)]
struct Finished {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    #[track_caller]
    fn ended_with(&self, code: u8) -> &Self {
        assert_eq!(self.code, Some(code.into()), "{self:#?}");
        self
    }

    #[track_caller]
    fn says(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "{text:?} is not in {self:#?}");
        self
    }

    #[track_caller]
    fn prints_nothing(&self) -> &Self {
        assert_eq!(self.stdout, "", "{self:#?}");
        self
    }

    /// The one JSON document on stdout.
    #[track_caller]
    fn document(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{self:#?}");
        serde_json::from_str(&self.stdout).unwrap()
    }
}

#[tokio::test]
async fn version_and_help_need_no_coordinator() {
    let fake = Fake::start().await;
    for arguments in [
        ["--version"].as_slice(),
        &["--help"],
        &["submit", "--help"],
        &["run", "watch", "--help"],
    ] {
        let output = run(&fake, arguments).await;
        output.ended_with(exit::OK);
        assert!(output.stdout.contains("tidegate") && output.stderr.is_empty());
    }
    assert!(run(&fake, &["--help"]).await.stdout.contains("Exit codes:"));
    assert_eq!(fake.requests(), 0);
}

#[tokio::test]
async fn a_wrong_command_line_is_named_and_costs_nothing() {
    let fake = Fake::start().await;
    let id = fake::run().run.to_string();
    let cases: [(&[&str], &str); 24] = [
        (&[], "Usage:"),
        (&["run"], "Usage:"),
        (&["sumbit"], "'submit'"),
        (
            &["submit", "hashes", "-", "--batch-sise", "3"],
            "'--batch-size'",
        ),
        (
            &["submit", "hashes", "-", "--batch-size", "0"],
            "1..=100000",
        ),
        (
            &["submit", "hashes", "-", "--batch-size", "1000000000"],
            "1..=100000",
        ),
        (
            &[
                "submit",
                "hashes",
                "-",
                "--batch-size",
                "2",
                "--batch-size",
                "3",
            ],
            "multiple times",
        ),
        (&["submit", "hashes", "-", "--priority", "hihg"], "'high'"),
        (&["submit", "Hashes", "-"], "not usable"),
        (
            &["submit", "hashes", "-", "--idempotency-key", ""],
            "--idempotency-key",
        ),
        (&["run", "show", "../../etc"], "<ID>"),
        (&["run", "list", "--limit", "0"], "--limit"),
        (&["run", "list", "--state", "dead"], "--state"),
        (&["run", "list", "--url", "ftp://x"], "--url"),
        (
            &[
                "sync",
                "search-console",
                "--property",
                "sc-domain:a.example",
                "--days",
                "0",
            ],
            "--days",
        ),
        (&["run", "show", &id, "--josn"], "--json"),
        (&["run", "cancel"], "<ID>"),
        (&["run", "prioritize", &id, "urgent"], "low, normal, high"),
        (&["batch", "show", "7"], "<ID>"),
        (&["dead", "redrive"], "--all"),
        (&["dead", "discard", "--dry-run"], "--reason"),
        (&["dead", "discard", "--all", "--reason", "x"], "--all"),
        (&["dead", "redrive", "--all", "--rate", "0"], "1..=100000"),
        (&["dead", "list", "--older-than", "10"], "such as"),
    ];
    for (arguments, expected) in cases {
        run(&fake, arguments)
            .await
            .ended_with(exit::USAGE)
            .says(expected)
            .prints_nothing();
    }
    assert_eq!(fake.requests(), 0);
}

#[cfg(unix)]
#[tokio::test]
async fn arguments_that_are_no_text_are_an_error_not_a_panic() {
    use std::os::unix::ffi::OsStrExt;
    let fake = Fake::start().await;
    let bytes = OsStr::from_bytes(b"\xff\xfe");
    for arguments in [
        [OsStr::new("run"), OsStr::new("show"), bytes],
        [OsStr::new("submit"), bytes, bytes],
    ] {
        let output = tidegate(&fake, arguments).output().await.unwrap();
        Finished::from(output)
            .ended_with(exit::USAGE)
            .prints_nothing();
    }
    let arguments = [OsStr::new("submit"), OsStr::new("hashes"), bytes];
    let output = tidegate(&fake, arguments).output().await.unwrap();
    Finished::from(output)
        .ended_with(exit::BAD_INPUT)
        .prints_nothing();
}

#[tokio::test]
async fn an_absent_coordinator_is_named_with_what_to_check() {
    let fake = Fake::start().await;
    let nobody = fake.stopped_url().await;
    for arguments in [
        ["run", "list"].as_slice(),
        &["worker", "list"],
        &[
            "sync",
            "search-console",
            "--property",
            "sc-domain:a.example",
        ],
    ] {
        let arguments = [arguments, &["--url", &nobody]].concat();
        let output = run(&fake, &arguments).await;
        output
            .ended_with(exit::UNAVAILABLE)
            .says(&nobody)
            .says("refused")
            .says("TIDEGATE_URL")
            .prints_nothing();
    }
}

#[tokio::test]
async fn somebody_else_at_the_url_is_noticed() {
    let fake = Fake::start().await;
    fake.refuse(200, "<html>hello</html>");
    run(&fake, &["run", "list"])
        .await
        .ended_with(exit::UNAVAILABLE)
        .says("no Tidegate coordinator")
        .prints_nothing();
    fake.refuse(404, "<html>gone</html>");
    run(&fake, &["worker", "list"])
        .await
        .ended_with(exit::UNAVAILABLE)
        .says("404");
}

#[tokio::test]
async fn a_busy_coordinator_is_not_the_inputs_fault() {
    let fake = Fake::start().await;
    let problem = json!({"title": "Too Many Requests", "code": "queue_full", "detail": "10 of 10 batches are pending"});
    fake.refuse(429, problem.to_string());
    let file = submit::file("1\n");
    let path = file.path().to_str().unwrap();
    run(&fake, &["submit", "hashes", path])
        .await
        .ended_with(exit::UNAVAILABLE)
        .says("queue_full")
        .says("10 of 10");
    let problem =
        json!({"title": "Conflict", "code": "submission_under_way", "detail": "try again"});
    fake.refuse(409, problem.to_string());
    run(&fake, &["submit", "hashes", path])
        .await
        .ended_with(exit::UNAVAILABLE)
        .says("submission_under_way");
    fake.refuse(503, "upstream is away");
    run(&fake, &["submit", "hashes", path])
        .await
        .ended_with(exit::UNAVAILABLE)
        .says("--idempotency-key");
    let sync = [
        "sync",
        "search-console",
        "--property",
        "sc-domain:a.example",
    ];
    run(
        &fake,
        &[&sync[..], &["--idempotency-key", "again"]].concat(),
    )
    .await
    .ended_with(exit::UNAVAILABLE)
    .says("--idempotency-key again");
}

#[tokio::test]
async fn the_token_is_sent_and_a_wrong_one_is_a_configuration_error() {
    let fake = Fake::start().await;
    let file = submit::file("from-the-file\n");
    let path = file.path().to_str().unwrap();
    run(&fake, &["worker", "list", "--token-file", path])
        .await
        .ended_with(exit::OK);
    assert_eq!(fake.authorizations(), ["Bearer from-the-file"]);

    let mut command = tidegate(&fake, ["worker", "list"]);
    let output = command
        .env("TIDEGATE_TOKEN", "from-the-environment")
        .output()
        .await
        .unwrap();
    Finished::from(output).ended_with(exit::OK);
    assert_eq!(fake.authorizations()[1], "Bearer from-the-environment");

    fake.refuse(
        401,
        json!({"title": "Unauthorized", "code": "unauthorized", "detail": "no"}).to_string(),
    );
    run(&fake, &["worker", "list"])
        .await
        .ended_with(exit::CONFIG)
        .says("TIDEGATE_TOKEN");
    run(&fake, &["worker", "list", "--token-file", "/no/such"])
        .await
        .ended_with(exit::CONFIG)
        .says("/no/such");
    let empty = submit::file(" \n");
    let path = empty.path().to_str().unwrap();
    run(&fake, &["worker", "list", "--token-file", path])
        .await
        .ended_with(exit::CONFIG)
        .says("no token");
}

#[tokio::test]
async fn lists_are_tables_or_ndjson() {
    let fake = Fake::start().await;
    run(&fake, &["run", "list"])
        .await
        .ended_with(exit::OK)
        .says("no such runs")
        .prints_nothing();
    run(&fake, &["dead", "list", "--json"])
        .await
        .ended_with(exit::OK)
        .prints_nothing();

    fake.has(3, 2, 1);
    let table = run(&fake, &["run", "list"]).await;
    assert_eq!(table.ended_with(exit::OK).stdout.lines().count(), 4);
    assert!(table.stdout.starts_with("RUN"));
    for (arguments, count) in [
        (["run", "list"], 3),
        (["dead", "list"], 2),
        (["worker", "list"], 1),
    ] {
        let lines = run(&fake, &[&arguments[..], &["--json"]].concat())
            .await
            .stdout;
        assert_eq!(lines.lines().count(), count);
        assert!(
            lines
                .lines()
                .all(|line| serde_json::from_str::<Value>(line).unwrap().is_object())
        );
    }

    let id = fake::run().run.to_string();
    run(
        &fake,
        &["dead", "list", "--run", &id, "--pipeline", "hashes"],
    )
    .await
    .ended_with(exit::OK);
    assert_eq!(
        fake.last_query(),
        format!("run={id}&pipeline=hashes&limit=100")
    );
    run(
        &fake,
        &["run", "list", "--state", "running", "--limit", "7"],
    )
    .await
    .ended_with(exit::OK);
    assert_eq!(fake.last_query(), "limit=7&state=running");
}

#[tokio::test]
async fn text_from_elsewhere_cannot_steer_the_terminal() {
    let fake = Fake::start().await;
    fake.has(0, 1, 0);
    let table = run(&fake, &["dead", "list"]).await;
    assert!(table.stdout.contains("[31mit broke") && !table.stdout.contains('\u{1b}'));
    fake.refuse(
        404,
        json!({"title": "Not Found", "detail": "\u{1b}[2Jgone"}).to_string(),
    );
    let output = run(&fake, &["dead", "list"]).await;
    assert!(!output.stderr.contains('\u{1b}'));
}

#[tokio::test]
async fn a_reader_that_has_enough_is_no_error() {
    let fake = Fake::start().await;
    fake.has(1_000, 0, 0);
    let mut child = tidegate(&fake, ["run", "list", "--json"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    let finished = Finished::from(output);
    finished.ended_with(exit::OK);
    assert_eq!(finished.stderr, "");
}

#[tokio::test]
async fn an_unknown_run_is_refused_in_the_coordinators_words() {
    let fake = Fake::start().await;
    fake.refuse(
        404,
        json!({"title": "Not Found", "code": "not_found", "detail": "there is no such run"})
            .to_string(),
    );
    let id = fake::run().run.to_string();
    run(&fake, &["run", "show", &id])
        .await
        .ended_with(exit::BAD_INPUT)
        .says("there is no such run [not_found]")
        .prints_nothing();
}

#[tokio::test]
async fn a_sync_submits_a_plan_for_each_property() {
    let fake = Fake::start().await;
    let arguments = [
        "sync",
        "search-console",
        "--property",
        "sc-domain:a.example",
        "--property",
        "https://B.example",
        "--days",
        "60",
        "--json",
    ];
    let output = run(&fake, &arguments).await;
    assert_eq!(output.ended_with(exit::OK).document()["state"], "running");
    let submission = &fake.submissions()[0];
    assert_eq!(submission.query, "pipeline=gsc.plan&priority=normal");
    let payload = |property: &str| json!({"key": property, "payload": {"property": property, "days": {"last": 60}}});
    assert_eq!(
        submission.batches,
        [
            payload("sc-domain:a.example"),
            payload("https://b.example/")
        ]
    );
}
