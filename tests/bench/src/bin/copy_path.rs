//! The figure `copy_path`: rows per second of a command's output, from submission to settled, into a typed PostgreSQL
//! table, against bare COPY of the same rows into the same table by `psql`.

// Its progress is for people.
#![allow(clippy::print_stderr)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::figure::Figure;
use bench::per_second;
use clap::Parser;
use harness::api::line;
use harness::postgres::Postgres;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use serde_json::json;

const PIPELINE: &str = "visits";
const LIMIT: Duration = Duration::from_mins(10);

/// Measures rows per second into a typed PostgreSQL table.
#[derive(Parser)]
struct Arguments {
    /// Batches in a round.
    #[arg(long, default_value_t = 400)]
    batches: usize,
    /// Rows of a batch.
    #[arg(long, default_value_t = 20_000)]
    rows: usize,
    /// Batches at once, from the start of their command to the commit.
    #[arg(long, default_value_t = 12)]
    slots: usize,
    /// Groups written at once, each by a connection of its own; the reference is one.
    #[arg(long, default_value_t = 2)]
    concurrency: usize,
    /// Most MiB of rows on the way into the sink: half of its default, and enough for the rows of all slots.
    #[arg(long, default_value_t = 32)]
    mebibytes: usize,
    /// Rounds of Tidegate and reference, alternating.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

struct Bench {
    broker: RabbitMq,
    postgres: Postgres,
    database: String,
    arguments: Arguments,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let postgres = Postgres::start()?;
    let url = postgres.new_database()?;
    let database = url.rsplit('/').next().context("a URL with a database")?;
    let bench = Bench {
        broker: RabbitMq::start()?,
        database: database.to_owned(),
        postgres,
        arguments,
    };
    // Not measured: PostgreSQL makes the WAL files that it uses again from then on.
    bench.tidegate().await?;
    let mut measured = Vec::new();
    for round in 1..=bench.arguments.rounds {
        let tidegate = bench.tidegate().await?;
        let reference = bench.bare()?;
        eprintln!("round {round}: COPY {reference:.0} rows/s, tidegate {tidegate:.0} rows/s");
        measured.push((tidegate, reference));
    }
    let reference = "bare binary COPY of the same rows, one connection";
    Figure::new(
        "copy_path",
        "rows/s",
        reference,
        Some("0.8 of it"),
        &measured,
    )
    .print();
    Ok(())
}

impl Bench {
    fn all_rows(&self) -> usize {
        self.arguments.batches * self.arguments.rows
    }

    fn psql(&self, sql: &str) -> Result<String> {
        self.postgres.psql(&self.database, sql)
    }

    /// Rows per second of a run whose batches are all these rows.
    async fn tidegate(&self) -> Result<f64> {
        let Arguments {
            batches,
            rows,
            slots,
            concurrency,
            mebibytes,
            ..
        } = self.arguments;
        let url = self.postgres.url(&self.database);
        let config = format!(
            "[pipelines.{PIPELINE}]\ncommand = [\"cat\", \"rows.ndjson\"]\nsink = \"visits\"\n\
             [sinks.visits]\nurl = \"{url}\"\ntable = \"visits\"\nconcurrency = {concurrency}\n\
             bytes = \"{mebibytes}MiB\"\ncolumns = [\"at timestamp\", \"page text\", \"query text\", \
             \"clicks bigint\", \"position float\", \"mobile bool\"]\n"
        );
        let mut stack = Stack::new(&self.broker, &config)?;
        stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
        stack.set("TIDEGATE_WORKER__SLOTS", slots.to_string());
        stack.set("TIDEGATE_LOG", "warn");
        std::fs::write(stack.scratch().path().join("rows.ndjson"), ndjson(rows))?;
        stack.start_coordinator().await?;
        stack.start_worker("worker").await?;
        self.psql("truncate visits, batch_commits; checkpoint")?;
        let lines = (0..batches).map(|number| line(&format!("key-{number}"), &json!(number)));
        let lines = lines.collect();

        let start = Instant::now();
        let run = stack.api.submit(PIPELINE, lines).await?;
        let ended = stack.api.wait_until_ended(run.run, LIMIT).await?;
        let took = start.elapsed();
        let stored = self.psql("select count(*) from visits")?;
        ensure!(
            ended.batches.completed == batches as u64
                && stored.trim() == self.all_rows().to_string(),
            "not all was stored: {stored} rows, {ended:?}"
        );
        let worker = stack.worker("worker");
        eprintln!(
            "worker: {:?} of processor time, peak {} MiB with {mebibytes} MiB of rows on the way",
            worker.cpu_time()?,
            worker.memory()?.peak >> 20
        );
        Ok(per_second(self.all_rows(), took))
    }

    /// Rows per second of one COPY of what is in the table, into the same table.
    fn bare(&self) -> Result<f64> {
        let file = tempfile::NamedTempFile::new()?;
        let path = file.path().display();
        self.psql(&format!("\\copy visits to '{path}' (format binary)"))?;
        self.psql("truncate visits; checkpoint")?;
        let start = Instant::now();
        self.psql(&format!("\\copy visits from '{path}' (format binary)"))?;
        Ok(per_second(self.all_rows(), start.elapsed()))
    }
}

/// The output of a batch's command.
fn ndjson(rows: usize) -> String {
    let mut text = String::new();
    for number in 0..rows {
        let row = json!({
            "at": format!("2026-02-10T{:02}:{:02}:{:02}.{:06}Z", number % 24, number % 60, number % 59, number),
            "page": format!("https://www.example.com/articles/{}", number % 977),
            "query": format!("words of a query {}", number % 7_919),
            "clicks": number % 1_000,
            "position": f64::from(u32::try_from(number % 10_000).unwrap_or_default()) / 100.0,
            "mobile": number % 2 == 0,
        });
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{row}");
    }
    text
}
