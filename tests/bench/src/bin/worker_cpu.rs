//! The figure `worker_cpu`: processor time of a worker for a batch that does nothing, against that of a bare lapin
//! consumer of the same messages; and the memory of a worker that has nothing to do.

// Its progress is for people.
#![allow(clippy::print_stderr)]

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use bench::figure::{Figure, mebibytes};
use bench::{bare, per_second, tidegate};
use clap::Parser;
use harness::processes::Service;
use harness::rabbitmq::RabbitMq;
use harness::scratch::Scratch;

/// What an idle worker may have, in MiB.
const IDLE_MEMORY: f64 = 20.0;
const LIMIT: Duration = Duration::from_mins(5);
/// What the bare consumer prints when messages may come.
const READY: &str = "consuming";
/// What it prints when it has consumed everything.
const DONE: &str = "consumed everything";

/// Measures processor time of a batch that does nothing.
#[derive(Parser)]
struct Arguments {
    /// Batches in a round.
    #[arg(long, default_value_t = 100_000)]
    batches: usize,
    /// Rounds of reference and Tidegate, alternating.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Be the bare consumer of that broker.
    #[arg(long, hide = true)]
    consume: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments {
        batches,
        rounds,
        consume,
    } = Arguments::parse();
    if let Some(url) = consume {
        let consuming = bare::Consuming::start(&url).await?;
        eprintln!("{READY}");
        let _connection = consuming.all(batches).await?;
        eprintln!("{DONE}");
        return std::future::pending().await;
    }
    let broker = RabbitMq::start()?;
    let micros = |cost: Duration| 1e6 / per_second(batches, cost);
    let (mut costs, mut idle) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let reference = micros(bare_consumer(&broker, batches).await?);
        let worker = tidegate::worker_cost(&broker, batches).await?;
        let (cost, memory) = (micros(worker.cpu), mebibytes(worker.idle.resident));
        eprintln!(
            "round {round}: processor µs a message: bare lapin {reference:.1}, worker {cost:.1}; \
             idle worker {memory:.1} MiB"
        );
        costs.push((cost, reference));
        idle.push((memory, IDLE_MEMORY));
    }
    let reference = "bare lapin consumer, ack every 100";
    let aim = "at most 2.5 of it";
    Figure::new("worker_cpu", "µs/batch", reference, Some(aim), &costs).print();
    let (reference, aim) = ("what it may be", "at most 1 of it");
    Figure::new("worker_idle_memory", "MiB", reference, Some(aim), &idle).print();
    Ok(())
}

/// A process of its own, as the worker is, and as there messages come while it consumes: those that lie in the queue
/// already are read many at once, and cost less than half.
async fn bare_consumer(broker: &RabbitMq, messages: usize) -> Result<Duration> {
    let vhost = broker.new_vhost()?;
    let scratch = Scratch::new("bare")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "--consume",
        &vhost.url(),
        "--batches",
        &messages.to_string(),
    ]);
    let mut consumer = Service::start_command(&scratch, command, "bare")?;
    consumer.wait_for_line(READY, LIMIT)?;
    bare::fill(&vhost.url(), messages).await?;
    consumer.wait_for_line(DONE, LIMIT)?;
    let cost = consumer.cpu_time()?;
    ensure!(!cost.is_zero(), "it cannot have cost nothing");
    consumer.kill()?;
    Ok(cost)
}
