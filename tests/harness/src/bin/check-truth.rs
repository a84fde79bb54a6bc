//! `check-truth`: compares a sink with the emulator's truth and says how it came about, by property.
//! Exit code 0 only if every slice is right.

// Its output is its purpose.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::emulator::Admin;
use harness::truth::{self, Sink, Wish, last_final_day, summary};
use jiff::civil::Date;
use serde_json::json;
use shared::search_console::{DimensionSet, SearchType};

/// The dimension sets that Tidegate syncs when nobody says otherwise.
const DIMENSIONS: [&str; 6] = [
    "date",
    "page",
    "query",
    "page,query,country,device",
    "country",
    "device",
];

/// Compares every slice that ought to be in a sink with the emulator's truth.
#[derive(Parser)]
struct Arguments {
    /// The database: `sqlite://path` or `postgres://…`.
    #[arg(long)]
    sink: String,
    /// Where the emulator is; without it, only the table is printed.
    #[arg(long)]
    emulator: Option<String>,
    /// A property that ought to be there. Repeatable.
    #[arg(long = "property", required = true)]
    properties: Vec<String>,
    /// How many days, the last one included.
    #[arg(long, default_value_t = 60)]
    days: u32,
    /// The last day; otherwise the last that is final by the emulator's clock.
    #[arg(long)]
    last: Option<Date>,
    /// Search types, comma-separated; otherwise all.
    #[arg(long, value_delimiter = ',')]
    types: Vec<SearchType>,
    /// One dimension set. Repeatable; otherwise the six that are synced by default.
    #[arg(long)]
    dimensions: Vec<DimensionSet>,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let sink = Sink::open(&arguments.sink).await?;
    let (mut statistics, mut report) = (None, None);
    if let Some(url) = &arguments.emulator {
        let emulator = Admin::new(url)?;
        statistics = Some(emulator.stats().await?);
        report = Some(compare(&sink, &emulator, &arguments).await?);
    }
    let properties =
        summary::by_property(&sink, &arguments.properties, statistics.as_ref()).await?;
    if arguments.json {
        println!("{}", json!({ "properties": properties, "truth": report }));
    } else {
        println!("{}", summary::table(&properties));
        if let Some(report) = &report {
            print!("{report}");
        }
    }
    let good = report.is_none_or(|report| report.is_good());
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn compare(sink: &Sink, emulator: &Admin, arguments: &Arguments) -> Result<truth::Report> {
    let last = match arguments.last {
        Some(last) => last,
        None => last_final_day(emulator.advance(0).await?),
    };
    let mut wish = Wish {
        properties: arguments.properties.clone(),
        types: arguments.types.clone(),
        dimensions: arguments.dimensions.clone(),
        last,
        days: arguments.days,
    };
    if wish.types.is_empty() {
        wish.types = SearchType::ALL.to_vec();
    }
    if wish.dimensions.is_empty() {
        wish.dimensions = DIMENSIONS
            .iter()
            .map(|set| set.parse())
            .collect::<Result<_, _>>()?;
    }
    truth::compare(sink, emulator, &wish).await
}
