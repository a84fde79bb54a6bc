//! Processes that serve batch after batch: what they are told and answer, and how they live.

mod answers;
mod processes;

use super::*;

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
