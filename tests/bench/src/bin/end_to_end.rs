//! The figures `end_to_end` and `end_to_end_postgres`: batches per second from submission to all settled, against a
//! bare publisher and consumer on the same broker.

// Its progress is for people.
#![allow(clippy::print_stderr)]

use std::time::Duration;

use anyhow::Result;
use bench::figure::Figure;
use bench::micros_each;
use bench::tidegate::Ledger;
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
    /// Where the ledger is.
    #[arg(long, value_enum, default_value = "sqlite")]
    ledger: Ledger,
    /// Only the reference.
    #[arg(long)]
    only_reference: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments {
        batches,
        rounds,
        ledger,
        only_reference,
    } = Arguments::parse();
    let broker = RabbitMq::start()?;
    let broker_cost = |before: Duration| -> Result<u128> {
        Ok(micros_each(
            broker.cpu_time()?.saturating_sub(before),
            batches,
        ))
    };
    let mut measured = Vec::new();
    for round in 1..=rounds {
        let (vhost, before) = (broker.new_vhost()?, broker.cpu_time()?);
        let reference = bench::bare::rate(&vhost.url(), batches).await?;
        eprintln!(
            "round {round}: bare lapin {reference:.0} messages/s; processor µs a message: RabbitMQ {}",
            broker_cost(before)?
        );
        if only_reference {
            continue;
        }
        let before = broker.cpu_time()?;
        let tidegate = bench::tidegate::round(&broker, ledger, batches).await?;
        eprintln!(
            "round {round}: {}, RabbitMQ {}",
            tidegate.describe(),
            broker_cost(before)?
        );
        measured.push((tidegate.rate(), reference));
    }
    if !measured.is_empty() {
        let reference = "bare lapin, quorum queue";
        let aim = match ledger {
            Ledger::Sqlite => "0.65 of it",
            Ledger::Postgres => "0.5 of it",
        };
        let figure = ledger.figure("end_to_end");
        Figure::new(&figure, "batches/s", reference, Some(aim), &measured).print();
    }
    Ok(())
}
