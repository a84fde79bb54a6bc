//! How processes start, end and are replaced, and what becomes of the batch that they had.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;

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
async fn a_batch_that_would_get_its_process_late_burns_no_attempt() {
    let exec = Arc::new(one_process());
    let busy = exec.clone();
    pid(&exec).await;
    let (begun, python) = marked("time.sleep(3); end()");
    let long = tokio::spawn(async move { run(&busy, &python).await });
    eventually("its begin", || begun.exists()).await;
    // It would get the process after three of its four seconds, and needs more than would be left.
    let late = handle(
        &exec,
        &context(&payload("time.sleep(1.5); end()"), Duration::from_secs(4)),
    )
    .await;
    assert!(
        matches!(late, Err(HandlerError::Throttled { .. })),
        "{late:?}"
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
async fn a_start_that_fails_when_nobody_waits_is_told_to_the_next_batch() {
    let hanging = with(&Options {
        started: "time.sleep(60)",
        start_timeout: Span::seconds(1),
        ..Options::default()
    });
    // None of them waits for as long as a start takes.
    let context = || context(&payload("end()"), Duration::from_millis(500));
    let mut told = handle(&hanging, &context()).await;
    assert!(
        matches!(told, Err(HandlerError::Throttled { .. })),
        "{told:?}"
    );
    for _ in 0..40 {
        if !matches!(told, Err(HandlerError::Throttled { .. })) {
            break;
        }
        told = handle(&hanging, &context()).await;
    }
    let error = retried(told);
    assert!(error.contains("it is not ready after 1s"), "{error}");
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
