//! The figures `submit` and `submit_postgres`: batches per second that an NDJSON submission brings into the ledger
//! over the HTTP API, against the same payloads written into one table of the same database.

// Its progress is for people.
#![allow(clippy::print_stderr)]

use anyhow::Result;
use bench::figure::Figure;
use bench::tidegate::Ledger;
use bench::{table, tidegate};
use clap::Parser;
use harness::rabbitmq::RabbitMq;

/// Measures batches per second from the first byte of a submission to its acceptance.
#[derive(Parser)]
struct Arguments {
    /// Batches in a round, all in one submission.
    #[arg(long, default_value_t = 200_000)]
    batches: usize,
    /// Rounds of reference and Tidegate, alternating.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the ledger is.
    #[arg(
        long,
        value_enum,
        default_value = "sqlite,postgres",
        value_delimiter = ','
    )]
    ledger: Vec<Ledger>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let broker = RabbitMq::start()?;
    for ledger in arguments.ledger {
        let mut measured = Vec::new();
        for round in 1..=arguments.rounds {
            let reference = table::rate(ledger, arguments.batches).await?;
            let tidegate = tidegate::submit(&broker, ledger, arguments.batches).await?;
            eprintln!(
                "round {round}: {ledger:?}: one table {reference:.0} rows/s, tidegate {tidegate:.0} batches/s"
            );
            measured.push((tidegate, reference));
        }
        let reference = "the same payloads into one table";
        let figure = ledger.figure("submit");
        Figure::new(&figure, "batches/s", reference, None, &measured).print();
    }
    Ok(())
}
