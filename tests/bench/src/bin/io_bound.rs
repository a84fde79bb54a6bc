//! The figure `io_bound`: how near batches of one HTTP call of 100 ms each, 100 at a time, come to the time that
//! the calls alone take; and the worker's memory.

// Its progress is for people.
#![allow(clippy::print_stderr)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use bench::figure::{Figure, mebibytes};
use clap::Parser;
use harness::api::line;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::sleep;

const PIPELINE: &str = "calls";
const CALL: Duration = Duration::from_millis(100);
/// What the worker may need, in MiB.
const MEMORY: f64 = 40.0;
const LIMIT: Duration = Duration::from_mins(5);

/// Measures batches of one HTTP call each.
#[derive(Parser)]
struct Arguments {
    /// Batches in a round.
    #[arg(long, default_value_t = 2_000)]
    batches: u32,
    /// Calls at a time.
    #[arg(long, default_value_t = 100)]
    concurrency: u32,
    /// Rounds, each with a new coordinator and worker.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let broker = RabbitMq::start()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let answer = async || {
        // The timer counts whole milliseconds and rounds up: a call would take 101 of them.
        sleep(CALL.saturating_sub(Duration::from_millis(1))).await;
        StatusCode::NO_CONTENT
    };
    let server = Router::new().route("/", post(answer));
    let serving = tokio::spawn(async move { axum::serve(listener, server).await });
    let (mut speeds, mut memory) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let (took, peak) = measure(&broker, &arguments, &url).await?;
        let ideal = CALL * arguments.batches.div_ceil(arguments.concurrency);
        eprintln!(
            "round {round}: {took:?}, the calls alone {ideal:?}; worker at most {peak:.1} MiB"
        );
        let rate = |span: Duration| f64::from(arguments.batches) / span.as_secs_f64();
        speeds.push((rate(took), rate(ideal)));
        memory.push((peak, MEMORY));
    }
    serving.abort();
    let reference = "the calls alone";
    Figure::new(
        "io_bound",
        "batches/s",
        reference,
        Some("0.95 of it"),
        &speeds,
    )
    .print();
    let (reference, aim) = ("what it may be", "at most 1 of it");
    Figure::new("io_bound_memory", "MiB", reference, Some(aim), &memory).print();
    Ok(())
}

/// From the run's acceptance to its last settlement, by the coordinator's clock; and the worker's memory in MiB.
async fn measure(broker: &RabbitMq, arguments: &Arguments, url: &str) -> Result<(Duration, f64)> {
    let Arguments {
        batches,
        concurrency,
        ..
    } = *arguments;
    let config = format!(
        "[pipelines.{PIPELINE}]\nhandler = \"http\"\nurl = \"{url}\"\nallow_private = true\n"
    );
    let mut stack = Stack::new(broker, &config)?;
    stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
    stack.set("TIDEGATE_WORKER__SLOTS", concurrency.to_string());
    // Calls that end together make room for as many at once.
    stack.set("TIDEGATE_WORKER__LOOK_AHEAD", concurrency.to_string());
    stack.set("TIDEGATE_LOG", "warn");
    stack.start_coordinator().await?;
    stack.start_worker("worker").await?;
    let lines = (0..batches).map(|n| line(&format!("key-{}", n % 100), &json!(n)));
    let run = stack.api.submit(PIPELINE, lines.collect()).await?;
    let ended = stack.api.wait_until_ended(run.run, LIMIT).await?;
    ensure!(
        ended.batches.completed == u64::from(batches) && ended.retries == 0,
        "not all completed at once: {ended:?}"
    );
    let finished = ended.finished_at.context("it has ended")?;
    let took = finished.duration_since(ended.created_at).unsigned_abs();
    Ok((took, mebibytes(stack.worker("worker").memory()?.peak)))
}
