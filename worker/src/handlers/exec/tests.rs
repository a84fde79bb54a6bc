//! Real processes. Whoever must be gone writes its number into a file first, so that one can look.

use std::path::Path;
use std::time::Instant;

use shared::batch::Batch;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::permits::Unlimited;

/// A deadline that a passing test never reaches.
const NEVER: Duration = Duration::from_mins(1);

fn exec(command: &[&str], environment: &[&str]) -> Exec {
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    let config = PipelineConfig {
        command: texts(command),
        environment: texts(environment),
        ..PipelineConfig::default()
    };
    Exec::new(&PipelineName::new("hashes").unwrap(), &config).unwrap()
}

fn context(payload: &str, deadline: Duration) -> BatchContext {
    let batch = Batch {
        id: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("hashes").unwrap(),
        key: Key::new("tenant ä").unwrap(),
        attempt: Attempt::new(3),
        payload: RawValue::from_string(payload.to_owned()).unwrap(),
    };
    BatchContext {
        batch,
        deadline: Instant::now() + deadline,
        cancelled: CancellationToken::new(),
        permits: Unlimited::shared(),
    }
}

async fn handle(exec: &Exec, ctx: &BatchContext) -> Result<Vec<String>, HandlerError> {
    let output = exec.handle(ctx.batch.payload.clone(), ctx).await?;
    match output.rows {
        Rows::Json(rows) => Ok(rows.iter().map(|row| row.get().to_owned()).collect()),
        other => panic!("{other:?}"),
    }
}

/// Runs a shell script on a payload.
async fn sh(script: &str, payload: &str) -> Result<Vec<String>, HandlerError> {
    handle(&exec(&["sh", "-c", script], &[]), &context(payload, NEVER)).await
}

#[track_caller]
fn failed(result: Result<Vec<String>, HandlerError>, expected: &str) -> String {
    match result {
        Err(HandlerError::Fail { reason, error }) => {
            assert_eq!(reason, expected, "{error}");
            error
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn retried(result: Result<Vec<String>, HandlerError>) -> String {
    match result {
        Err(HandlerError::Retry { error, after: None }) => error,
        other => panic!("{other:?}"),
    }
}

/// Waits until `condition` holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{what} never happened"
        );
        sleep(Duration::from_millis(5)).await;
    }
}

fn number_in(file: &Path) -> Option<i32> {
    std::fs::read_to_string(file)
        .ok()?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

/// Whether a process runs. A zombie that nobody fetched does not.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with(['Z', 'X'])
}

/// A script whose child ignores SIGTERM, and the files with the numbers of both.
fn stubborn_family(folder: &Path) -> (String, [std::path::PathBuf; 2]) {
    let (parent, child) = (folder.join("parent"), folder.join("child"));
    let script = format!(
        "(trap '' TERM; sh -c 'echo $$ > {child}; while :; do sleep 1; done') & echo $$ > {parent}; wait; sleep 60",
        child = child.display(),
        parent = parent.display(),
    );
    (script, [parent, child])
}

#[tokio::test]
async fn the_payload_goes_in_and_rows_come_out() {
    assert_eq!(
        sh("cat", "[{\"a\": 1},\n 2]").await.unwrap(),
        ["[{\"a\": 1},  2]"]
    );
    assert_eq!(sh("true", "[]").await.unwrap(), Vec::<String>::new());
    let script =
        "import json, sys\nfor item in json.load(sys.stdin): print(json.dumps({'n': item * 2}))";
    let python = exec(&["python3", "-c", script], &[]);
    let rows = handle(&python, &context("[1, 2, 3]", NEVER)).await.unwrap();
    assert_eq!(rows, [r#"{"n": 2}"#, r#"{"n": 4}"#, r#"{"n": 6}"#]);
}

#[tokio::test]
async fn a_command_need_not_read_its_payload() {
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    assert_eq!(sh("exec <&-; echo 1", &large).await.unwrap(), ["1"]);
    assert_eq!(
        sh("head -c 3 > /dev/null; echo 2", &large).await.unwrap(),
        ["2"]
    );
}

#[tokio::test]
async fn large_payloads_and_outputs_do_not_wait_for_each_other() {
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    let rows = sh(
        "head -c 2000000 /dev/zero | tr '\\0' e >&2; cat; cat /dev/null",
        &large,
    )
    .await
    .unwrap();
    assert_eq!(rows, [large]);
}

#[tokio::test]
async fn output_that_is_no_rows_fails_the_batch_unless_the_exit_code_says_otherwise() {
    let error = failed(
        sh("echo 1; echo '{\"half\":'; echo why >&2", "[]").await,
        "bad_output",
    );
    assert!(
        error.contains("line 2 of stdout") && error.ends_with("stderr: why"),
        "{error}"
    );
    failed(sh("printf '{\"half\":'", "[]").await, "bad_output");
    failed(sh("printf '\"\\\\u0000\"'", "[]").await, "bad_output");
    failed(sh("printf '\\000'", "[]").await, "bad_output");
    retried(sh("echo Traceback; exit 1", "[]").await);
}

#[tokio::test]
async fn a_flood_is_cut_off() {
    let start = Instant::now();
    let error = failed(sh("yes | tr -d '\\n'", "[]").await, "output_too_large");
    assert!(error.contains("line 1 of stdout"), "{error}");
    let error = failed(sh("yes 1", "[]").await, "output_too_large");
    assert!(error.contains("100000 rows"), "{error}");
    let error = failed(sh("yes ''", "[]").await, "output_too_large");
    assert!(error.contains("67108864 bytes"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_flood_of_stderr_leaves_its_end() {
    let error = retried(
        sh(
            "yes error | head -n 1000000 >&2; printf 'the \\033[31mreason\\n' >&2; exit 3",
            "[]",
        )
        .await,
    );
    assert!(
        error.starts_with("the command exited with code 3; stderr: "),
        "{error}"
    );
    assert!(error.ends_with("error\nthe \u{fffd}[31mreason"), "{error}");
    assert!(error.len() <= shared::outcome::MAX_ERROR_BYTES + 8);
}

#[tokio::test]
async fn the_exit_says_what_becomes_of_the_batch() {
    assert!(retried(sh("echo 1; exit 75", "[]").await).contains("code 75"));
    failed(sh("exit 65", "[]").await, "rejected");
    failed(
        sh("no-such-program-anywhere", "[]").await,
        "command_not_found",
    );
    assert!(retried(sh("kill -9 $$", "[]").await).contains("SIGKILL (probably out of memory)"));
    assert!(retried(sh("sh -c 'kill -SEGV $$'; exit $?", "[]").await).contains("SIGSEGV"));
}

#[tokio::test]
async fn the_environment_is_what_was_agreed() {
    // Cargo sets these for the test, as a deployment sets secrets for a worker.
    let exec = exec(&["env"], &["CARGO_PKG_NAME", "NOT_SET_ANYWHERE"]);
    let ctx = context("[]", NEVER);
    let mut command = exec.command.for_batch(&ctx.batch);
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    names.retain(|name| !["HOME", "LANG", "TMPDIR"].contains(name));
    names.sort_unstable();
    let expected = [
        "CARGO_PKG_NAME",
        "PATH",
        "TIDEGATE_ATTEMPT",
        "TIDEGATE_BATCH",
        "TIDEGATE_KEY",
        "TIDEGATE_PIPELINE",
        "TIDEGATE_RUN",
    ];
    assert_eq!(names, expected);
    assert!(text.contains("TIDEGATE_KEY=tenant ä\n") && text.contains("TIDEGATE_ATTEMPT=3\n"));
    assert!(text.contains(&format!("TIDEGATE_BATCH={}\n", ctx.batch.id)));
}

#[tokio::test]
async fn at_the_deadline_the_whole_family_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (script, files) = stubborn_family(folder.path());
    let exec = exec(&["sh", "-c", &script], &[]);
    let start = Instant::now();
    let error = retried(handle(&exec, &context("[]", Duration::from_millis(500))).await);
    assert!(error.contains("deadline, after 300s"), "{error}");
    assert!(start.elapsed() < Duration::from_millis(500) + GRACE + REAP);
    for file in files {
        let pid = number_in(&file).expect("it had started");
        eventually("its end", || !runs(pid)).await;
    }
}

#[tokio::test]
async fn a_dropped_attempt_leaves_nobody_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (script, files) = stubborn_family(folder.path());
    let exec = exec(&["sh", "-c", &script], &[]);
    let attempt = tokio::spawn(async move { handle(&exec, &context("[]", NEVER)).await });
    eventually("their start", || {
        files.iter().all(|file| number_in(file).is_some())
    })
    .await;
    attempt.abort();
    for file in files {
        let pid = number_in(&file).unwrap();
        eventually("its end", || !runs(pid)).await;
    }
}

#[tokio::test]
async fn an_attempt_that_is_called_off_may_clean_up() {
    let folder = tempfile::tempdir().unwrap();
    let (ready, cleaned) = (folder.path().join("ready"), folder.path().join("cleaned"));
    let script = format!(
        "trap 'echo 1 > {}; exit 0' TERM; echo 1 > {}; while :; do sleep 0.01; done",
        cleaned.display(),
        ready.display()
    );
    let exec = exec(&["sh", "-c", &script], &[]);
    let ctx = context("[]", NEVER);
    let cancelled = ctx.cancelled.clone();
    let attempt = tokio::spawn(async move { handle(&exec, &ctx).await });
    eventually("its start", || number_in(&ready).is_some()).await;
    cancelled.cancel();
    assert!(retried(attempt.await.unwrap()).contains("called off"));
    assert_eq!(number_in(&cleaned), Some(1));
}

#[tokio::test]
async fn a_child_left_in_the_background_ends_with_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("child");
    let start = Instant::now();
    let script = format!("sleep 60 & echo $! > {}; echo 1", file.display());
    assert_eq!(sh(&script, "[]").await.unwrap(), ["1"]);
    assert!(start.elapsed() < Duration::from_secs(10));
    let pid = number_in(&file).unwrap();
    eventually("its end", || !runs(pid)).await;
}

#[tokio::test]
async fn a_daemon_that_keeps_the_pipes_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("daemon");
    let start = Instant::now();
    let script = format!(
        "setsid sh -c 'echo $$ > {file}; exec sleep 30' & until [ -s {file} ]; do sleep 0.01; done; printf 1",
        file = file.display()
    );
    assert_eq!(sh(&script, "[]").await.unwrap(), ["1"]);
    assert!(start.elapsed() < Duration::from_secs(10));
    // It left the group, which is its right; the test cleans up after it.
    let pid = nix::unistd::Pid::from_raw(number_in(&file).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_program_that_vanished_is_tried_again() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("work");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let exec = exec(&[program.to_str().unwrap()], &[]);
    std::fs::remove_file(&program).unwrap();
    assert!(retried(handle(&exec, &context("[]", NEVER)).await).contains("cannot run"));
}
