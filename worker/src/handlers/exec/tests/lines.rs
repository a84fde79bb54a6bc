//! Processes that serve batch after batch.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::value::RawValue;
use shared::presence::Progress;

use super::*;
use crate::cursor::Cursors;
use crate::holding::Holding;
use crate::sink::SinkError;

/// Answers each batch as its payload, a piece of Python, says; `say` writes a line, `end` ends the batch.
const SCRIPT: &str = r#"
import json, os, signal, subprocess, sys, time

def say(**words):
    print(json.dumps(words), flush=True)

def raw(text):
    sys.stdout.write(text)
    sys.stdout.flush()

def end(**more):
    say(completed={"batch": batch["batch"], **more})

STARTED
say(ready=1)
served = 0
for line in sys.stdin:
    batch = json.loads(line)
    served += 1
    exec(batch["payload"])
ENDED
"#;

struct Options {
    started: &'static str,
    ended: String,
    processes: Option<u32>,
    batches_per_process: Option<u32>,
    start_timeout: Span,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            started: "",
            ended: String::new(),
            processes: Some(1),
            batches_per_process: None,
            start_timeout: Span::seconds(60),
        }
    }
}

fn with(options: &Options) -> Exec {
    let script = SCRIPT
        .replace("STARTED", options.started)
        .replace("ENDED", &options.ended);
    configured(&PipelineConfig {
        command: texts(&["python3", "-c", &script]),
        mode: ExecMode::Lines,
        processes: options.processes,
        batches_per_process: options.batches_per_process,
        start_timeout: options.start_timeout,
        ..PipelineConfig::default()
    })
}

fn one_process() -> Exec {
    with(&Options::default())
}

fn payload(python: &str) -> String {
    serde_json::to_string(python).unwrap()
}

async fn run(exec: &Exec, python: &str) -> Result<Vec<String>, HandlerError> {
    handle(exec, &context(&payload(python), NEVER)).await
}

/// The number of the process that serves the next batch.
async fn pid(exec: &Exec) -> i32 {
    run(exec, "say(row=os.getpid()); end()").await.unwrap()[0]
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_process_serves_batch_after_batch() {
    let exec = one_process();
    let first = pid(&exec).await;
    for n in 2..=20 {
        let rows = run(
            &exec,
            "say(row={'n': served}); say(row='ä\\n'); end(rows=2)",
        )
        .await;
        assert_eq!(
            rows.unwrap(),
            [format!("{{\"n\": {n}}}"), "\"\\u00e4\\n\"".into()]
        );
    }
    assert_eq!(pid(&exec).await, first);
}

#[tokio::test]
async fn a_batch_is_told_with_everything_that_is_known_about_it() {
    let exec = one_process();
    let python = "say(row={k: v for k, v in batch.items() if k != 'payload'}); end()";
    let ctx = context(&payload(python), NEVER);
    let rows = handle(&exec, &ctx).await.unwrap();
    let row: serde_json::Value = serde_json::from_str(&rows[0]).unwrap();
    assert_eq!(row["batch"], ctx.batch.id.to_string());
    assert_eq!(row["run"], ctx.batch.run.to_string());
    assert_eq!(
        (&row["pipeline"], &row["key"], &row["attempt"]),
        (&"hashes".into(), &"tenant ä".into(), &3.into())
    );
    let left = row["deadline_ms"].as_u64().unwrap();
    assert!((30_000..=60_000).contains(&left), "{left}");
}

/// Keeps one cursor, whoever's it is.
#[derive(Debug, Default)]
struct Kept(Mutex<Option<String>>);

#[async_trait]
impl Cursors for Kept {
    async fn cursor(&self, _: BatchId) -> Result<Option<Box<RawValue>>, SinkError> {
        unreachable!("whoever delivers the batch has read it")
    }

    async fn save_cursor(
        &self,
        _: BatchId,
        _: Attempt,
        cursor: Box<RawValue>,
    ) -> Result<(), SinkError> {
        *self.0.lock().unwrap() = Some(cursor.get().to_owned());
        Ok(())
    }

    async fn forget_old_cursors(&self) -> Result<(), SinkError> {
        unreachable!("nobody asks for it")
    }
}

#[tokio::test]
async fn a_process_goes_on_where_an_earlier_attempt_stopped() {
    let (exec, kept) = (one_process(), Arc::new(Kept::default()));
    let attempt = async |found: Option<&str>| {
        let python = "say(row=batch.get('cursor')); say(cursor={'line': 7}); \
            end() if 'cursor' in batch else say(retry={'batch': batch['batch'], 'error': 'half'})";
        let mut ctx = context(&payload(python), NEVER);
        let found = found.map(|found| RawValue::from_string(found.to_owned()).unwrap());
        ctx.saved = Cursor::kept_in(kept.clone(), found);
        handle(&exec, &ctx).await
    };
    assert_eq!(retried(attempt(None).await), "half");
    let saved = kept.0.lock().unwrap().take().unwrap();
    assert_eq!(saved, "{\"line\": 7}");
    assert_eq!(attempt(Some(&saved)).await.unwrap(), ["{\"line\": 7}"]);

    let long = run(&exec, "say(cursor='x' * 65536); end()").await;
    assert!(failed(long, "bad_output").contains("64 KiB"));
}

#[tokio::test]
async fn progress_is_told_while_the_batch_runs() {
    let (exec, holding) = (one_process(), Holding::default());
    let python = "say(progress={'done': 1, 'total': 3}); say(progress={'done': 2}); end()";
    let mut ctx = context(&payload(python), NEVER);
    let _held = holding.hold(ctx.batch.id);
    ctx.reporter = holding.reporter(ctx.batch.id);
    handle(&exec, &ctx).await.unwrap();
    let two = Progress {
        done: 2,
        total: None,
    };
    assert_eq!(holding.progress()[&ctx.batch.id], two);

    let odd = run(&exec, "say(progress='half'); end()").await;
    let said = failed(odd, "bad_output");
    assert!(said.contains("struct Progress"), "{said}");
}

#[tokio::test]
async fn a_payload_of_many_lines_is_one_line() {
    let script = "import sys
print('{\"ready\": 1}', flush=True)
for line in sys.stdin:
    import json
    batch = json.loads(line)
    print(json.dumps({'row': batch['payload']}))
    print(json.dumps({'completed': {'batch': batch['batch']}}), flush=True)";
    let echo = configured(&PipelineConfig {
        command: texts(&["python3", "-c", script]),
        mode: ExecMode::Lines,
        ..PipelineConfig::default()
    });
    let rows = handle(&echo, &context("[1,\n\r\n 2]", NEVER))
        .await
        .unwrap();
    assert_eq!(rows, ["[1, 2]"]);
}

#[tokio::test]
async fn the_answer_says_what_becomes_of_the_batch() {
    let exec = one_process();
    let process = pid(&exec).await;
    let python = "say(row=1); say(follow_up={'pipeline': 'index', 'key': 'k', 'payload': [1]}); end(statistics={'seen': 7}, batch_key='k')";
    let ctx = context(&payload(python), NEVER);
    let output = exec.handle(ctx.batch.payload.clone(), &ctx).await.unwrap();
    assert_eq!(output.statistics, [("seen".to_owned(), 7)].into());
    assert_eq!(output.batch_key.unwrap().as_str(), "k");
    assert_eq!(output.follow_ups[0].pipeline.as_str(), "index");
    assert_eq!(output.follow_ups[0].payload.get(), "[1]");

    let said = |verdict: &str| format!("say(row=1); say({verdict})");
    let verdict = run(
        &exec,
        &said("retry={'batch': batch['batch'], 'error': 'busy', 'after_ms': 1500}"),
    )
    .await;
    let after = Some(Duration::from_millis(1500));
    assert_eq!(
        verdict,
        Err(HandlerError::Retry {
            error: "busy".into(),
            after
        })
    );
    let verdict = run(
        &exec,
        &said("retry={'batch': batch['batch'], 'error': 'busy'}"),
    )
    .await;
    assert_eq!(retried(verdict), "busy");
    let verdict = run(
        &exec,
        &said("throttled={'batch': batch['batch'], 'reason': 'quota', 'after_ms': 0}"),
    )
    .await;
    let after = Duration::from_secs(1);
    assert_eq!(
        verdict,
        Err(HandlerError::Throttled {
            reason: "quota".into(),
            after
        })
    );
    let verdict = run(
        &exec,
        &said("failed={'batch': batch['batch'], 'error': 'no such file'}"),
    )
    .await;
    assert_eq!(failed(verdict, "rejected"), "no such file");
    assert_eq!(
        pid(&exec).await,
        process,
        "none of this is the process's fault"
    );
}

#[tokio::test]
async fn lines_that_are_none_of_the_protocols_fail_their_batch_alone() {
    let exec = one_process();
    let process = pid(&exec).await;
    let cases = [
        (
            "print('hello')",
            "line 1 of the output is none of the protocol's",
        ),
        ("say(row=1); raw('{\"row\": \\n')", "line 2"),
        ("raw('{\"row\": NaN}\\n')", "line 1"),
        ("raw('{\"row\": 1e999}\\n')", "line 1"),
        ("raw('{\"row\": \"\\\\\\\\u0000\"}\\n')", ""),
        ("raw('{\"row\": \"\\\\u0000\"}\\n')", "NUL"),
        ("raw('\\0\\n')", "line 1"),
        (
            "sys.stdout.buffer.write(b'{\"row\": \"\\xff\"}\\n')",
            "not UTF-8",
        ),
        ("say(rows=[1])", "unknown variant `rows`"),
        ("say(ready=1)", "says ready"),
        (
            "say(row=json.loads('[' * 101 + ']' * 101))",
            "nested deeper",
        ),
        (
            "say(follow_up={'pipeline': 'No Name', 'key': 'k', 'payload': 1})",
            "pipeline name",
        ),
    ];
    for (python, expected) in cases {
        let result = run(&exec, &format!("{python}; end()")).await;
        if expected.is_empty() {
            assert!(result.is_ok(), "{python}: an escaped backslash is harmless");
            continue;
        }
        let error = failed(result, "bad_output");
        assert!(error.contains(expected), "{python}: {error}");
    }
    assert_eq!(pid(&exec).await, process);
}

#[tokio::test]
async fn rows_are_counted_where_their_number_is_said() {
    let exec = one_process();
    let error = failed(run(&exec, "say(row=1); end(rows=2)").await, "bad_output");
    assert!(error.contains("counted 2 rows and wrote 1"), "{error}");
    failed(run(&exec, "say(row=1); end(rows=0)").await, "bad_output");
    assert!(run(&exec, "end(rows=0)").await.is_ok());
}

#[tokio::test]
async fn a_flood_is_cut_off_and_its_process_replaced() {
    let exec = one_process();
    let mut before = pid(&exec).await;
    let cases = [
        ("raw('x' * (1 << 30))", "line 1 of the output"),
        ("raw('{\"row\":1}\\n' * 100001)", "100000 rows"),
        (
            "[raw('\\n' * 65536) for _ in range(1025)]",
            "67108864 bytes",
        ),
    ];
    for (python, expected) in cases {
        let error = failed(run(&exec, python).await, "output_too_large");
        assert!(error.contains(expected), "{error}");
        assert!(!runs(before));
        before = pid(&exec).await;
    }
}

#[tokio::test]
async fn a_process_that_dies_takes_its_batch_along_alone() {
    let exec = one_process();
    let cases = [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "SIGKILL (probably out of memory)",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os._exit(137)", "code 137, as after SIGKILL"),
        ("os._exit(3)", "code 3"),
        ("os._exit(0)", "ended before its batch did"),
        (
            "raise ValueError('broken model')",
            "ValueError: broken model",
        ),
        (
            "say(row=1); raw('{\"completed\": {\"ba'); os._exit(0)",
            "ended before its batch did",
        ),
    ];
    for (python, expected) in cases {
        let error = retried(run(&exec, python).await);
        assert!(error.contains(expected), "{python}: {error}");
        assert!(pid(&exec).await > 0, "a new one serves the next batch");
    }
    for code in [126, 127] {
        failed(
            run(&exec, &format!("os._exit({code})")).await,
            "command_not_found",
        );
    }
    failed(run(&exec, "os._exit(65)").await, "rejected");
}

#[tokio::test]
async fn last_words_belong_to_the_batch_that_they_were_said_in() {
    let exec = one_process();
    run(
        &exec,
        "print('of the first', file=sys.stderr, flush=True); time.sleep(0.1); end()",
    )
    .await
    .unwrap();
    let error = retried(
        run(
            &exec,
            "print('of the second', file=sys.stderr, flush=True); os._exit(1)",
        )
        .await,
    );
    assert!(error.ends_with("code 1; stderr: of the second"), "{error}");
}

#[tokio::test]
async fn a_flood_of_stderr_stops_nobody() {
    let exec = one_process();
    let rows = run(
        &exec,
        "sys.stderr.write('x' * 10_000_000); say(row=1); end()",
    )
    .await;
    assert_eq!(rows.unwrap(), ["1"]);
}

#[tokio::test]
async fn an_answer_that_was_complete_counts_though_the_process_died() {
    let exec = one_process();
    let process = pid(&exec).await;
    let rows = run(&exec, "say(row=1); end(); os._exit(1)").await;
    assert_eq!(rows.unwrap(), ["1"]);
    eventually("its end", || !runs(process)).await;
    assert_eq!(run(&exec, "say(row=2); end()").await.unwrap(), ["2"]);
}

#[tokio::test]
async fn who_speaks_of_something_else_is_not_trusted_any_longer() {
    let exec = one_process();
    let other = BatchId::generate();
    let cases = [
        (
            format!("say(completed={{'batch': '{other}'}})"),
            "another batch",
        ),
        (
            "raw(json.dumps({'completed': {'batch': batch['batch']}}) + '\\n{\"row\": 1}\\n')"
                .into(),
            "went on",
        ),
        (
            "raw(json.dumps({'completed': {'batch': batch['batch']}}) + '\\n{\"row\"')".into(),
            "went on",
        ),
    ];
    for (python, expected) in cases {
        let before = pid(&exec).await;
        let error = retried(run(&exec, &python).await);
        assert!(error.contains(expected), "{error}");
        assert_ne!(pid(&exec).await, before);
    }
}

#[tokio::test]
async fn what_was_said_between_batches_is_nobodys() {
    let exec = one_process();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("said");
    let python = format!(
        "end(); time.sleep(0.1); say(row='late'); open({:?}, 'w').write('1\\n')",
        file.display().to_string()
    );
    run(&exec, &python).await.unwrap();
    eventually("the late row", || number_in(&file).is_some()).await;
    // The pipe has it; the runtime is about to know.
    sleep(Duration::from_millis(100)).await;
    assert_eq!(run(&exec, "say(row=1); end()").await.unwrap(), ["1"]);
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let exec = one_process();
    let process = pid(&exec).await;
    let ctx = context(
        &payload("print('thinking', file=sys.stderr, flush=True); time.sleep(60)"),
        Duration::from_millis(500),
    );
    let start = Instant::now();
    let error = retried(handle(&exec, &ctx).await);
    assert!(
        error.contains("deadline") && error.ends_with("stderr: thinking"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(!runs(process));
    assert_ne!(pid(&exec).await, process);
}

#[tokio::test]
async fn closed_pipes_end_the_batch() {
    let exec = one_process();
    let error = retried(run(&exec, "os.close(1); time.sleep(60)").await);
    assert!(error.contains("closed its stdout"), "{error}");
    assert!(pid(&exec).await > 0);
}

#[tokio::test]
async fn a_child_that_keeps_the_pipes_holds_nothing_up() {
    let exec = one_process();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("child");
    let start = Instant::now();
    for (setsid, survives) in [("", false), ("setsid ", true)] {
        let python = format!(
            "subprocess.Popen(['sh', '-c', '{setsid}sh -c \"echo \\\\$\\\\$ > {0}; exec sleep 50\" & until [ -s {0} ]; do sleep 0.01; done']).wait(); os._exit(1)",
            file.display()
        );
        assert!(retried(run(&exec, &python).await).contains("code 1"));
        let child = number_in(&file).unwrap();
        if survives {
            // It left the group, which is its right; the test cleans up after it.
            let child = nix::unistd::Pid::from_raw(child);
            nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        } else {
            eventually("its end", || !runs(child)).await;
        }
        std::fs::remove_file(&file).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// What does the same, and makes a file before.
fn marked(python: &str) -> (tempfile::TempPath, String) {
    let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    std::fs::remove_file(&file).unwrap();
    let path = file.display().to_string();
    (file, format!("open({path:?}, 'w').close(); {python}"))
}

#[tokio::test]
async fn a_dropped_batch_takes_its_process_along() {
    let exec = Arc::new(one_process());
    let process = pid(&exec).await;
    let (begun, python) = marked("time.sleep(60)");
    let dropped = exec.clone();
    let attempt = tokio::spawn(async move { run(&dropped, &python).await });
    eventually("its begin", || begun.exists()).await;
    attempt.abort();
    eventually("its end", || !runs(process)).await;
    assert_ne!(pid(&exec).await, process);
}

#[tokio::test]
async fn as_many_processes_as_have_work_and_no_more() {
    let exec = Arc::new(with(&Options {
        processes: Some(3),
        ..Options::default()
    }));
    let first = pid(&exec).await;
    assert_eq!(
        pid(&exec).await,
        first,
        "one is enough for one batch at a time"
    );
    let batches = (0..12).map(|_| {
        let exec = exec.clone();
        tokio::spawn(
            async move { run(&exec, "time.sleep(0.2); say(row=os.getpid()); end()").await },
        )
    });
    let mut processes = BTreeSet::new();
    for batch in futures::future::join_all(batches).await {
        processes.insert(batch.unwrap().unwrap().remove(0));
    }
    assert_eq!(processes.len(), 3);
    assert!(processes.contains(&first.to_string()));
}

#[tokio::test]
async fn a_batch_that_finds_no_process_in_time_burns_no_attempt() {
    let exec = Arc::new(one_process());
    let busy = exec.clone();
    pid(&exec).await;
    let (begun, python) = marked("time.sleep(3); end()");
    let long = tokio::spawn(async move { run(&busy, &python).await });
    eventually("its begin", || begun.exists()).await;
    let waiting = handle(
        &exec,
        &context(&payload("end()"), Duration::from_millis(500)),
    )
    .await;
    assert!(
        matches!(waiting, Err(HandlerError::Throttled { .. })),
        "{waiting:?}"
    );
    assert!(long.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_process_that_loads_for_longer_than_a_batch_may_take_serves_the_next_one() {
    let slow = with(&Options {
        started: "time.sleep(2)",
        ..Options::default()
    });
    let early = handle(
        &slow,
        &context(&payload("end()"), Duration::from_millis(200)),
    )
    .await;
    assert!(
        matches!(early, Err(HandlerError::Throttled { .. })),
        "{early:?}"
    );
    // The same process: it goes on loading, and nothing else may be started meanwhile.
    assert_eq!(run(&slow, "say(row=served); end()").await.unwrap(), ["1"]);
}

#[tokio::test]
async fn a_process_that_never_becomes_ready_says_why() {
    let short = Span::seconds(1);
    let cases = [
        (
            "sys.exit('no model')",
            Span::seconds(60),
            "ended before it was ready",
            "no model",
        ),
        (
            "raw('Loading…\\n'); time.sleep(60)",
            Span::seconds(60),
            "\"Loading…\" instead of {\"ready\": 1}",
            "",
        ),
        (
            "say(ready=2); time.sleep(60)",
            Span::seconds(60),
            "version 2",
            "",
        ),
        (
            "raw('x' * 2000000); time.sleep(60)",
            Span::seconds(60),
            "\"xxxxxxxx",
            "",
        ),
        (
            "os.close(1); time.sleep(60)",
            Span::seconds(60),
            "closed its stdout",
            "",
        ),
        (
            "print('loading', file=sys.stderr, flush=True); time.sleep(60)",
            short,
            "not ready after 1s",
            "loading",
        ),
    ];
    for (started, start_timeout, expected, said) in cases {
        let exec = with(&Options {
            started,
            start_timeout,
            ..Options::default()
        });
        let error = retried(run(&exec, "end()").await);
        assert!(error.contains("does not start"), "{error}");
        assert!(
            error.contains(expected) && error.contains(said),
            "{started}: {error}"
        );
    }
}

#[tokio::test]
async fn restarts_take_longer_and_longer() {
    let exec = one_process();
    let start = Instant::now();
    for _ in 0..6 {
        retried(run(&exec, "os._exit(1)").await);
    }
    // Up to 0.2 + 0.4 + 0.8 + 1.6 + 3.2 s, drawn at random: less than a tenth of it happens never.
    let Mode::Lines(pool) = &exec.mode else {
        panic!("not the mode that was asked for")
    };
    assert_eq!(pool.lost(), 6);
    assert!(
        start.elapsed() > Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
    assert!(run(&exec, "end()").await.is_ok());
    assert_eq!(pool.lost(), 0);
}

#[tokio::test]
async fn a_process_that_has_served_enough_is_ended_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ended");
    let ended = format!("open({:?}, 'a').write('x')", file.display().to_string());
    let exec = with(&Options {
        ended,
        batches_per_process: Some(3),
        ..Options::default()
    });
    for expected in [1, 2, 3, 1, 2, 3, 1] {
        let rows = run(&exec, "say(row=served); end()").await.unwrap();
        assert_eq!(rows, [expected.to_string()]);
    }
    assert_eq!(
        std::fs::read_to_string(file).unwrap(),
        "xx",
        "each at its leisure"
    );
}

#[tokio::test]
async fn at_the_end_processes_may_say_goodbye() {
    let folder = tempfile::tempdir().unwrap();
    let files: [PathBuf; 2] = ["saved", "terminated"].map(|name| folder.path().join(name));
    let ended = format!(
        "time.sleep(0.2)\nopen({:?}, 'w').write(f'{{served}}\\n')",
        files[0].display().to_string()
    );
    let exec = with(&Options {
        ended,
        ..Options::default()
    });
    let process = pid(&exec).await;
    exec.close().await;
    assert_eq!(number_in(&files[0]), Some(1));
    assert!(!runs(process));
    assert!(
        run(&exec, "end()").await.is_err(),
        "nothing is started any more"
    );

    // One that does not care about the end of file is asked, then told.
    let deaf = format!(
        "signal.signal(signal.SIGTERM, lambda *_: open({:?}, 'w').write('1\\n'))\ntime.sleep(0.1)\nwhile True: time.sleep(0.1)",
        files[1].display().to_string()
    );
    let exec = with(&Options {
        ended: deaf,
        ..Options::default()
    });
    let process = pid(&exec).await;
    let start = Instant::now();
    exec.close().await;
    assert!(start.elapsed() > Duration::from_secs(6) && start.elapsed() < Duration::from_secs(20));
    assert_eq!(number_in(&files[1]), Some(1));
    assert!(!runs(process));
}

#[tokio::test]
async fn cpu_time_is_counted_by_batch() {
    let script = SCRIPT.replace("STARTED", "").replace("ENDED", "");
    let exec = configured(&PipelineConfig {
        command: texts(&["python3", "-c", &script]),
        mode: ExecMode::Lines,
        cpu_limit: Some(Span::seconds(1)),
        ..PipelineConfig::default()
    });
    let compute = |seconds: f64| {
        format!("t = time.process_time() + {seconds}\nwhile time.process_time() < t: pass\nend()")
    };
    // More than a second over all batches, less in each.
    for _ in 0..4 {
        run(&exec, &compute(0.6)).await.unwrap();
    }
    let error = retried(run(&exec, &compute(20.0)).await);
    assert!(error.contains("SIGXCPU"), "{error}");
}
