//! The figure `exec_lines`: batches per second of a long-lived Python process that workers give batches to,
//! against the same program reading the same lines from a file.

// Its progress is for people.
#![allow(clippy::print_stderr)]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bench::figure::Figure;
use bench::per_second;
use clap::Parser;
use harness::api::line;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use serde_json::{Value, json};

/// The example's helper speaks the protocol, the work is what a text pipeline does: count, weigh, answer.
const HELPER: &str = include_str!("../../../../examples/python/tidegate_lines.py");
const WORK: &str = r#"
from tidegate_lines import serve

WEIGHTS = {f"word{n}": n % 7 - 3 for n in range(1000)}

def score(batch):
    for item in batch["payload"]:
        words = item["text"].split()
        yield {"id": item["id"], "words": len(words), "score": sum(WEIGHTS.get(word, 0) for word in words)}

serve(score)
"#;
const PIPELINE: &str = "scores";
const LIMIT: Duration = Duration::from_mins(10);

/// Measures batches per second of a long-lived Python process.
#[derive(Parser)]
struct Arguments {
    /// Batches in a round.
    #[arg(long, default_value_t = 5_000)]
    batches: usize,
    /// Items of a batch, a text of 20 words each. So many are half a millisecond of work; with fewer, dispatch is
    /// what is measured, which has a figure of its own.
    #[arg(long, default_value_t = 100)]
    items: usize,
    /// Python processes; the reference is one.
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// Rounds of reference and Tidegate, alternating.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let broker = RabbitMq::start()?;
    let mut measured = Vec::new();
    for round in 1..=arguments.rounds {
        let (reference, tidegate) = measure(&broker, &arguments).await?;
        eprintln!("round {round}: file {reference:.0} batches/s, tidegate {tidegate:.0} batches/s");
        measured.push((tidegate, reference));
    }
    let reference = "the same program reading a file";
    Figure::new(
        "exec_lines",
        "batches/s",
        reference,
        Some("0.5 of it"),
        &measured,
    )
    .print();
    Ok(())
}

/// Batches per second of the program alone, and under Tidegate.
async fn measure(broker: &RabbitMq, arguments: &Arguments) -> Result<(f64, f64)> {
    let Arguments {
        batches,
        items,
        processes,
        ..
    } = *arguments;
    let config = format!(
        "[pipelines.{PIPELINE}]\ncommand = [\"python3\", \"work.py\"]\nmode = \"lines\"\n\
         processes = {processes}\nwindow_min = 100\n"
    );
    let mut stack = Stack::new(broker, &config)?;
    stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
    stack.set("TIDEGATE_LOG", "warn");
    // Enough that processes wait neither for batches nor for what is being stored.
    stack.set("TIDEGATE_WORKER__SLOTS", (processes + 15).to_string());
    let folder = stack.scratch().path().to_owned();
    std::fs::write(folder.join("tidegate_lines.py"), HELPER)?;
    std::fs::write(folder.join("work.py"), WORK)?;
    let lines: String = (0..batches).map(|number| request(number, items)).collect();
    std::fs::write(folder.join("lines"), lines)?;
    let reference = alone(&folder, batches)?;

    stack.start_coordinator().await?;
    stack.start_worker("worker").await?;
    let ndjson: String = (0..batches)
        .map(|number| line("key", &payload(number, items)))
        .collect();
    let start = Instant::now();
    let run = stack.api.submit(PIPELINE, ndjson).await?;
    let ended = stack.api.wait_until_ended(run.run, LIMIT).await?;
    let took = start.elapsed();
    ensure!(
        ended.rows == (batches * items) as u64 && ended.retries == 0,
        "not all was done: {ended:?}"
    );
    Ok((reference, per_second(batches, took)))
}

fn alone(folder: &Path, batches: usize) -> Result<f64> {
    let start = Instant::now();
    let status = Command::new("python3")
        .arg("work.py")
        .current_dir(folder)
        .stdin(File::open(folder.join("lines"))?)
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "the program failed: {status}");
    Ok(per_second(batches, start.elapsed()))
}

fn payload(number: usize, items: usize) -> Value {
    let text = |item: usize| {
        let words = (0..20).map(|n| format!("word{}", (number + 7 * item + 13 * n) % 2_000));
        words.collect::<Vec<_>>().join(" ")
    };
    (0..items)
        .map(|item| json!({ "id": number * items + item, "text": text(item) }))
        .collect()
}

/// What a worker would write to the process.
fn request(number: usize, items: usize) -> String {
    let batch = format!("019a0000-0000-7000-8000-{number:012}");
    let request = json!({
        "batch": batch, "run": batch, "pipeline": PIPELINE, "key": "key", "attempt": 1,
        "deadline_ms": 300_000, "payload": payload(number, items),
    });
    format!("{request}\n")
}
