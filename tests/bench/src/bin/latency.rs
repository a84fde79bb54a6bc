//! The figures `latency_p50` and `latency_p99`: how long a batch takes from the client's request to the start of
//! its handler while batches come one by one, against publish to delivery by lapin alone at the same pace.

// Its progress is for people.
#![allow(clippy::print_stderr)]

use std::time::Duration;

use anyhow::Result;
use bench::bare;
use bench::figure::{Figure, quantile};
use bench::tidegate::waits;
use clap::Parser;
use harness::rabbitmq::RabbitMq;

/// Measures how long a batch takes from its submission to its handler.
#[derive(Parser)]
struct Arguments {
    /// Batches in a round, each a run of its own.
    #[arg(long, default_value_t = 1_500)]
    batches: usize,
    /// Batches a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Rounds of reference and Tidegate, alternating.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments {
        batches,
        rate,
        rounds,
    } = Arguments::parse();
    let pause = Duration::from_secs(1) / rate;
    let broker = RabbitMq::start()?;
    let (mut halves, mut tails) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let vhost = broker.new_vhost()?;
        let reference = millis(&bare::waits(&vhost.url(), batches, pause).await?);
        let tidegate = millis(&waits(&broker, batches, pause).await?);
        for (share, rounds) in [(0.5, &mut halves), (0.99, &mut tails)] {
            let (ours, theirs) = (quantile(&tidegate, share), quantile(&reference, share));
            eprintln!(
                "round {round}: p{:.0}: tidegate {ours:.2} ms, bare lapin {theirs:.2} ms",
                share * 100.0
            );
            rounds.push((ours, theirs));
        }
    }
    let reference = "bare lapin, publish to delivery";
    Figure::new("latency_p50", "ms", reference, Some("under 5 ms"), &halves).print();
    Figure::new("latency_p99", "ms", reference, Some("under 15 ms"), &tails).print();
    Ok(())
}

fn millis(waits: &[Duration]) -> Vec<f64> {
    waits.iter().map(|wait| wait.as_secs_f64() * 1e3).collect()
}
