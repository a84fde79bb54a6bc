//! The figure `limit_use`: how much of a quota a fleet uses, and how much of what it asks for is refused, by real
//! workers against the emulator of Google Search Console.

// Its output is its purpose.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use harness::limit_use::{LimitUse, Quota, Usage};
use harness::rabbitmq::RabbitMq;
use serde_json::{Value, json};

/// Before anything counts.
const WARM_UP: Duration = Duration::from_secs(20);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(30);

/// Measures how much of a quota is used, and how much is refused.
#[derive(Parser)]
struct Arguments {
    /// How long each fleet is watched: several of the minutes in which calls are counted.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// How many workers there are, one fleet after the other.
    #[arg(long, value_delimiter = ',', default_value = "16,4")]
    workers: Vec<usize>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let broker = RabbitMq::start()?;
    let span = Duration::from_secs(arguments.seconds);
    for workers in arguments.workers {
        // A call a second more costs nobody anything, so the slow one runs beside.
        let (fast, slow) = tokio::try_join!(
            async {
                let user = one(&broker, Quota::User, workers, span).await?;
                let site = one(&broker, Quota::Site, workers, span).await?;
                anyhow::Ok([user, site])
            },
            one(&broker, Quota::NewProject, workers, 2 * span),
        )?;
        for figure in fast.into_iter().chain([slow]) {
            println!("{figure}");
        }
    }
    Ok(())
}

async fn one(broker: &RabbitMq, quota: Quota, workers: usize, span: Duration) -> Result<Value> {
    let limit_use = LimitUse::start(broker, quota, workers).await?;
    // The rates of the properties have to climb to it first.
    tokio::time::sleep(WARM_UP).await;
    let begin = limit_use.calls().await?;
    while begin.elapsed() < span {
        let usage = limit_use.measure(PROGRESS.min(span)).await?;
        eprintln!("{workers} workers, {quota:?}: {usage:?}");
    }
    let usage = limit_use.since(&begin).await?;
    limit_use.stop();
    Ok(figure(quota, workers, &usage))
}

fn figure(quota: Quota, workers: usize, usage: &Usage) -> Value {
    let round = |number: f64| (number * 10_000.0).round() / 10_000.0;
    json!({
        "figure": "limit_use",
        "value": round(usage.share),
        "unit": "share of the allowed calls that were made",
        "rejected": round(usage.rejected),
        "allowed_per_minute": quota.per_minute(),
        "quota": format!("{quota:?}"),
        "workers": workers,
    })
}
