//! Everything that a command can do wrong, with one process a batch and with long-lived ones: each costs its own
//! batch alone, with a typed failure, and nothing of it reaches the sink.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::api::line;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use serde_json::json;

const LIMIT: Duration = Duration::from_mins(2);

/// Does with its payload, one word, what it says.
const DEEDS: &str = r#"
import json, os, signal, subprocess, sys, time

def raw(text):
    sys.stdout.write(text)
    sys.stdout.flush()

def do(deed, row):
    if deed == "fine":
        raw(row("1"))
    elif deed == "half JSON":
        raw(row('{"half":'))
    elif deed == "1 GB in one line":
        for _ in range(1024):
            raw("x" * (1 << 20))
    elif deed == "NaN":
        raw(row("NaN"))
    elif deed == "NUL":
        raw(row('"\\u0000"'))
    elif deed == "a fork that keeps the pipe":
        raw(row("1"))
        subprocess.Popen(["sleep", "30"])
        os._exit(3)
    elif deed == "a signal":
        raw(row("1"))
        os.kill(os.getpid(), signal.SIGSEGV)
    elif deed == "silence":
        time.sleep(60)
    elif deed.startswith("exit "):
        raw(row("1"))
        os._exit(int(deed.split()[1]))
"#;
const BATCH: &str = r"
do(json.load(sys.stdin), lambda row: row + '\n')
";
const LINES: &str = r#"
raw('{"ready": 1}\n')
for line in sys.stdin:
    batch = json.loads(line)
    do(batch["payload"], lambda row: '{"row": ' + row + '}\n')
    rows = 1 if batch["payload"] != "too few rows" else 2
    raw(json.dumps({"completed": {"batch": batch["batch"], "rows": rows}}) + "\n")
"#;
const PIPELINES: &str = r#"
[pipelines.batch]
command = ["python3", "batch.py"]
max_attempts = 1
deadline = "5s"

[pipelines.lines]
command = ["python3", "lines.py"]
mode = "lines"
processes = 2
max_attempts = 1
deadline = "5s"
"#;

/// What is said about each deed: the reason, and a part of the error.
fn expected(pipeline: &str) -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let mut deeds = BTreeMap::from([
        ("half JSON", ("bad_output", "line 1 of the output")),
        (
            "1 GB in one line",
            ("output_too_large", "line 1 of the output"),
        ),
        ("NaN", ("bad_output", "line 1 of the output")),
        ("NUL", ("bad_output", "NUL")),
        (
            "a fork that keeps the pipe",
            ("attempts_exhausted", "code 3"),
        ),
        ("a signal", ("attempts_exhausted", "SIGSEGV")),
        ("silence", ("attempts_exhausted", "deadline")),
        ("exit 1", ("attempts_exhausted", "code 1")),
        ("exit 65", ("rejected", "code 65")),
        ("exit 126", ("command_not_found", "code 126")),
        ("exit 127", ("command_not_found", "code 127")),
        (
            "exit 137",
            ("attempts_exhausted", "SIGKILL (probably out of memory)"),
        ),
    ]);
    if pipeline == "lines" {
        deeds.insert("exit 0", ("attempts_exhausted", "before its batch did"));
        deeds.insert("too few rows", ("bad_output", "counted 2 rows and wrote 0"));
    }
    deeds
}

async fn each_costs_its_own_batch_alone(pipeline: &str) {
    let mut stack = Stack::new(broker(), PIPELINES).unwrap();
    for (file, serve) in [("batch.py", BATCH), ("lines.py", LINES)] {
        std::fs::write(stack.scratch().path().join(file), format!("{DEEDS}{serve}")).unwrap();
    }
    stack.set("TIDEGATE_WORKER__PIPELINES", pipeline);
    stack.set("TIDEGATE_WORKER__SLOTS", "2");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let worker = stack.worker("a").id();

    // Good ones before, between and after them.
    let expected = expected(pipeline);
    let fine = expected.len() + 1;
    let mut batches = line("fine", &json!("fine"));
    for deed in expected.keys() {
        batches += &line(deed, &json!(deed));
        batches += &line("fine", &json!("fine"));
    }
    let run = stack.api.submit(pipeline, batches).await.unwrap();
    let run = stack.api.wait_until_ended(run.run, LIMIT).await.unwrap();
    assert_eq!(
        (run.batches.completed, run.batches.dead),
        (fine as u64, expected.len() as u64),
        "{run:?}"
    );
    for dead in stack.api.dead(run.run).await.unwrap() {
        let (reason, error) = expected[dead.key.as_str()];
        assert_eq!(dead.reason, reason, "{dead:?}");
        assert!(dead.error.contains(error), "{dead:?}");
    }
    let sink = stack.sink().await.unwrap();
    let rows = sink
        .texts("select cast(json as text) from results")
        .await
        .unwrap();
    assert_eq!(
        rows,
        vec!["1"; fine],
        "one row of each that is fine, and no other"
    );
    let markers = sink
        .texts("select count(*) || '' from batch_commits")
        .await
        .unwrap();
    assert_eq!(markers, [fine.to_string()]);
    stack.worker("a").ensure_running().unwrap();
    assert_eq!(stack.worker("a").id(), worker);
    let output = stack.worker("a").output().unwrap();
    assert!(!output.contains("panicked"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_process_that_has_one_batch() {
    each_costs_its_own_batch_alone("batch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_process_that_serves_many() {
    each_costs_its_own_batch_alone("lines").await;
}
