//! What a process is told about a batch, and what it may answer.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::value::RawValue;
use shared::presence::Progress;

use super::*;
use crate::cursor::Cursors;
use crate::holding::Holding;
use crate::sink::SinkError;

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
