//! `test-services`: a RabbitMQ node, and if asked for a PostgreSQL server, for as long as this program runs.
//! For scripts, and for trying things by hand:
//!
//! ```sh
//! target/debug/test-services --postgres
//! ```
//!
//! Prints `NAME=value` lines that a shell can read, then `ready`. When it ends, however it ends, the servers
//! stop and their files are removed.

// Its output is its purpose.
#![allow(clippy::print_stdout)]

use anyhow::Result;
use clap::Parser;
use harness::port;
use harness::postgres::Postgres;
use harness::rabbitmq::RabbitMq;

/// Starts a RabbitMQ node, and if asked for a PostgreSQL server, until it is stopped itself.
#[derive(Parser)]
struct Arguments {
    /// Do not start RabbitMQ.
    #[arg(long)]
    no_rabbitmq: bool,
    /// Start RabbitMQ with its management UI on this port, or a free one if it is taken.
    #[arg(long, value_name = "PORT")]
    management: Option<u16>,
    /// Start PostgreSQL too, with an empty database.
    #[arg(long)]
    postgres: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let broker = if arguments.no_rabbitmq {
        None
    } else {
        Some(start_broker(arguments.management)?)
    };
    let postgres = if arguments.postgres {
        Some(start_postgres()?)
    } else {
        None
    };
    println!("ready");
    loop {
        std::thread::park();
        // Parking may end by itself; the servers must live on.
        let _still_needed = (&broker, &postgres);
    }
}

fn start_broker(management: Option<u16>) -> Result<RabbitMq> {
    let Some(wanted) = management else {
        let broker = RabbitMq::start()?;
        println!("TIDEGATE_BROKER__URL={}", broker.url());
        return Ok(broker);
    };
    let port = if port::is_free(wanted) {
        wanted
    } else {
        port::free()
    };
    let broker = RabbitMq::start_with_management(port)?;
    println!("TIDEGATE_BROKER__URL={}", broker.url());
    println!("RABBITMQ_UI=http://127.0.0.1:{port}");
    Ok(broker)
}

fn start_postgres() -> Result<Postgres> {
    let postgres = Postgres::start()?;
    println!("POSTGRES_URL={}", postgres.new_database()?);
    Ok(postgres)
}
