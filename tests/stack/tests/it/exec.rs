//! Real files through a real command: `sha256sum` has the last word.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use scenario::search_console::finished;
use serde_json::Value;

const FOLDER: &str = "/usr/share/doc";
/// Reads a JSON array of paths, prints one row a file.
const HASH: &str = r#"
import hashlib, json, sys
for path in json.load(sys.stdin):
    print(json.dumps({"path": path, "sha256": hashlib.sha256(open(path, "rb").read()).hexdigest()}))
"#;
const PIPELINE: &str =
    "[pipelines.hashes]\nhandler = \"exec\"\ncommand = [\"python3\", \"hash.py\"]\n";

/// What `sha256sum` says by itself.
fn expected() -> BTreeMap<String, String> {
    let command = format!("find {FOLDER} -type f -print0 | xargs -0 -r sha256sum -z");
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    let lines = output
        .stdout
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (hash, path) = std::str::from_utf8(line).unwrap().split_once("  ").unwrap();
            (path.to_owned(), hash.to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_is_hashed_once_and_as_sha256sum_does() {
    let expected = expected();
    assert!(expected.len() > 10, "{FOLDER} is nearly empty here");
    let mut stack = Stack::new(broker(), PIPELINE).unwrap();
    let folder = stack.scratch().path().to_owned();
    std::fs::write(folder.join("hash.py"), HASH).unwrap();
    let list: Vec<String> = expected
        .keys()
        .map(|path| Value::from(path.as_str()).to_string())
        .collect();
    std::fs::write(folder.join("list.ndjson"), list.join("\n")).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "hashes");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    stack.start_worker("b").await.unwrap();

    let arguments = [
        "submit",
        "hashes",
        "list.ndjson",
        "--batch-size",
        "50",
        "--watch",
        "--json",
    ];
    let run = finished(&stack.tidegate(&arguments).await.unwrap()).unwrap();
    assert_eq!(run.batches.accepted, expected.len().div_ceil(50) as u64);
    assert_eq!(run.rows, expected.len() as u64);

    let rows = stack
        .sink()
        .await
        .unwrap()
        .texts("select cast(json as text) from results")
        .await
        .unwrap();
    assert_eq!(rows.len(), expected.len(), "each file exactly once");
    let stored: BTreeMap<String, String> = rows.iter().map(|row| path_and_hash(row)).collect();
    assert_eq!(stored, expected);
}

fn path_and_hash(row: &str) -> (String, String) {
    let row: Value = serde_json::from_str(row).unwrap();
    let text = |field: &str| row[field].as_str().unwrap().to_owned();
    (text("path"), text("sha256"))
}

/// Everything that a command can do wrong, each with what is said about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_command_is_reported_with_its_last_words() {
    const FAILING: &str = r#"
import json, sys
sys.stderr.write("the disk is on fire\n")
sys.exit(3)
"#;
    let pipeline =
        format!("{PIPELINE}max_attempts = 2\nretry_base = \"10ms\"\nretry_cap = \"10ms\"\n");
    let mut stack = Stack::new(broker(), &pipeline).unwrap();
    std::fs::write(stack.scratch().path().join("hash.py"), FAILING).unwrap();
    std::fs::write(stack.scratch().path().join("list.ndjson"), "1\n2\n").unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "hashes");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let answer = stack
        .tidegate(&["submit", "hashes", "list.ndjson", "--watch", "--json"])
        .await
        .unwrap();
    assert_eq!(answer.code, 1, "{answer:?}");
    let run = stack.api.runs().await.unwrap().remove(0);
    assert_eq!((run.batches.dead, run.retries), (2, 2), "{run:?}");
    for dead in stack.api.dead(run.run).await.unwrap() {
        assert_eq!(
            (dead.reason.as_str(), dead.attempts),
            ("attempts_exhausted", 2),
            "{dead:?}"
        );
        assert!(
            dead.error.contains("the disk is on fire") && dead.error.contains('3'),
            "{dead:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_command_is_stopped_with_its_children() {
    // The child would go on writing if only its parent were stopped.
    const HANGING: &str = r#"
import subprocess
subprocess.run(["sh", "-c", "while :; do date >> alive; sleep 0.05; done"])
"#;
    let pipeline = format!("{PIPELINE}max_attempts = 1\ndeadline = \"1s\"\n");
    let mut stack = Stack::new(broker(), &pipeline).unwrap();
    let folder = stack.scratch().path().to_owned();
    std::fs::write(folder.join("hash.py"), HANGING).unwrap();
    std::fs::write(folder.join("list.ndjson"), "1\n").unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "hashes");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let answer = stack
        .tidegate(&["submit", "hashes", "list.ndjson", "--watch", "--json"])
        .await
        .unwrap();
    assert_eq!(answer.code, 1, "{answer:?}");
    let run = stack.api.runs().await.unwrap().remove(0);
    let dead = stack.api.dead(run.run).await.unwrap();
    assert!(
        dead[0].error.contains("1s") || dead[0].error.contains("deadline"),
        "{dead:?}"
    );
    assert_eq!(
        processes_in(&folder),
        Vec::<String>::new(),
        "somebody is left"
    );
}

/// Command lines of shells that run in a folder.
fn processes_in(folder: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()));
    processes
        .filter(|process| std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder))
        .filter_map(|process| std::fs::read(process.join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.as_bytes().starts_with(b"sh -c") || line.contains("hash.py"))
        .collect()
}
