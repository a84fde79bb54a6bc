//! What a command may use.

use shared::config::Size;

use super::*;

fn limited(script: &str, limit: impl FnOnce(&mut PipelineConfig)) -> Exec {
    let mut config = PipelineConfig {
        command: texts(&["python3", "-c", script]),
        ..PipelineConfig::default()
    };
    limit(&mut config);
    configured(&config)
}

const ALLOCATE: &str = "print(len(bytearray(400 << 20)))";
const COMPUTE: &str = "import time
while time.process_time() < 20: pass";

#[tokio::test]
async fn memory_beyond_the_limit_is_not_given() {
    let free = limited(ALLOCATE, |_| {});
    assert!(handle(&free, &context("[]", NEVER)).await.is_ok());
    let bounded = limited(ALLOCATE, |config| {
        config.memory_limit = Some(Size::mebibytes(200));
    });
    let error = retried(handle(&bounded, &context("[]", NEVER)).await);
    assert!(error.contains("MemoryError"), "{error}");
}

#[tokio::test]
async fn a_process_that_computes_too_long_is_ended() {
    let bounded = limited(COMPUTE, |config| config.cpu_limit = Some(Span::seconds(1)));
    let error = retried(handle(&bounded, &context("[]", NEVER)).await);
    assert!(error.contains("SIGXCPU (over its cpu_limit)"), "{error}");
}

#[tokio::test]
async fn children_have_the_same_limits_and_leave_no_cores() {
    let script = "import subprocess, sys; sys.stdin.read(); subprocess.run(['sh', '-c', 'ulimit -v; ulimit -t; ulimit -c'])";
    let bounded = limited(script, |config| {
        config.memory_limit = Some(Size::mebibytes(512));
        config.cpu_limit = Some(Span::seconds(7));
    });
    let rows = handle(&bounded, &context("[]", NEVER)).await.unwrap();
    assert_eq!(
        rows,
        ["524288", "8", "0"],
        "KiB; seconds, begun ones too; blocks"
    );
}

#[tokio::test]
async fn nobody_gets_more_privileges_unless_that_is_allowed() {
    let show = "import json; print(json.dumps([line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')][0]))";
    for (allowed, flag) in [(false, "\"1\""), (true, "\"0\"")] {
        let exec = limited(show, |config| config.allow_new_privileges = allowed);
        let rows = handle(&exec, &context("[]", NEVER)).await.unwrap();
        // Where the worker itself may not, nobody may.
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = own.contains("NoNewPrivs:\t1");
        assert_eq!(rows, [if own { "\"1\"" } else { flag }]);
    }
}
