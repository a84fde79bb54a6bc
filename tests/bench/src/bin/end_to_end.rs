//! The figure `end_to_end`: batches per second from submission to all settled, against a bare publisher
//! and consumer on the same broker.

// Its output is its purpose.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use anyhow::Result;
use clap::Parser;
use harness::rabbitmq::RabbitMq;

/// Measures batches per second from submission to all settled.
#[derive(Parser)]
struct Arguments {
    /// Batches in a round.
    #[arg(long, default_value_t = 100_000)]
    batches: usize,
    /// Rounds of reference and Tidegate, alternating.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only the reference.
    #[arg(long)]
    only_reference: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let broker = RabbitMq::start()?;
    let (mut rates, mut references) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let vhost = broker.new_vhost()?;
        let reference = bench::bare::rate(&vhost.url(), arguments.batches).await?;
        eprintln!("round {round}: bare lapin {reference:.0} messages/s");
        references.push(reference);
        if arguments.only_reference {
            continue;
        }
        let (rate, accepted) = bench::tidegate::rate(&broker, arguments.batches).await?;
        eprintln!(
            "round {round}: tidegate {rate:.0} batches/s (accepted after {:.1} s)",
            accepted.as_secs_f32()
        );
        rates.push(rate);
    }
    if !rates.is_empty() {
        let reference = "bare lapin, quorum queue, same run";
        println!(
            "{}",
            bench::figure("end_to_end", "batches/s", reference, &rates, &references)
        );
    }
    Ok(())
}
