//! How many small batches a second a sink commits when many wait at once, and how many rows of slices.
//! Prints one JSON line a sink.
//!
//! `cargo bench -p tidegate-worker --bench sink_commits`
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

#[path = "../tests/it/support/postgres.rs"]
mod postgres;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan, civil::date};
use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::{Attempt, Instance};
use shared::outcome::Completed;
use shared::search_console::SearchType;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::handler::Rows;
use worker::jobs::search_console::slice_rows::{Numbers, Slice, SliceId, SliceRows};
use worker::sink::postgres::PostgresSink;
use worker::sink::sqlite::SqliteSink;
use worker::sink::{Grouping, Marker, Sink};

/// Batches under way at once: the prefetch of a busy worker.
const AT_ONCE: usize = 128;
const BATCHES: usize = 10_000;
const SLICES: i64 = 8;
const ROWS_PER_SLICE: u32 = 25_000;

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteSink::open(
        &folder.path().join("results.db"),
        Grouping::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    measure("sqlite", Arc::new(sqlite)).await;
    let database = postgres::Database::create();
    let postgres = connect(&database).await;
    measure("postgres", Arc::new(postgres)).await;
}

async fn connect(database: &postgres::Database) -> PostgresSink {
    let (url, hurry) = (database.url().into(), CancellationToken::new());
    let sink = PostgresSink::connect(&url, Grouping::default(), hurry).await;
    sink.unwrap()
}

async fn measure(name: &str, sink: Arc<dyn Sink>) {
    let one_row = || {
        let row = RawValue::from_string(r#"{"ok":true}"#.to_owned()).unwrap();
        Rows::Json(std::iter::once(row).collect())
    };
    let empty = commit_all(&sink, BATCHES, AT_ONCE, |_| Rows::None).await;
    let json = commit_all(&sink, BATCHES, AT_ONCE, |_| one_row()).await;
    let alone = commit_all(&sink, 200, 1, |_| Rows::None).await;
    let slices = commit_all(&sink, usize::try_from(SLICES).unwrap(), 3, slice).await;
    let per_second = |count: usize, time: Duration| {
        (count as u64 * 1_000_000) / u64::try_from(time.as_micros()).unwrap()
    };
    println!(
        "{}",
        serde_json::json!({
            "figure": "sink_commits",
            "sink": name,
            "markers_per_s": per_second(BATCHES, empty),
            "one_row_batches_per_s": per_second(BATCHES, json),
            "commits_per_s_one_at_a_time": per_second(200, alone),
            "slice_rows_per_s": per_second(usize::try_from(SLICES).unwrap() * ROWS_PER_SLICE as usize, slices),
        })
    );
}

async fn commit_all(
    sink: &Arc<dyn Sink>,
    batches: usize,
    at_once: usize,
    rows: impl Fn(usize) -> Rows,
) -> Duration {
    let prepared: Vec<Arc<Rows>> = (0..batches).map(|n| Arc::new(rows(n))).collect();
    let start = Instant::now();
    let mut running = JoinSet::new();
    for rows in prepared {
        if running.len() == at_once {
            running.join_next().await.unwrap().unwrap();
        }
        let marker = Marker {
            batch: BatchId::generate(),
            attempt: Attempt::new(1),
            writer: Instance::from("bench".to_owned()),
            completed: Completed::default(),
            batch_key: None,
        };
        let sink = Arc::clone(sink);
        running.spawn(async move { drop(sink.commit(marker, rows).await.unwrap()) });
    }
    running.join_all().await;
    start.elapsed()
}

fn slice(day: usize) -> Rows {
    let mut rows = SliceRows::new(4);
    for n in 0..ROWS_PER_SLICE {
        let page = format!("https://alpha.example/p/{}", n % 9_000);
        let query = format!("query {:x} {}", n, n % 9_973);
        let numbers = Numbers {
            clicks: 1,
            impressions: u64::from(n),
            position: Some(f64::from(n) / 7.0),
        };
        rows.push(&[&page, &query, "usa", "MOBILE"], numbers)
            .unwrap();
    }
    Rows::Slice(Box::new(Slice {
        id: SliceId {
            property: "sc-domain:alpha.example".into(),
            search_type: SearchType::Web,
            dimensions: "page,query,country,device".parse().unwrap(),
            date: date(2026, 2, 10) + i64::try_from(day).unwrap().days(),
        },
        rows,
        is_final: true,
        truncated: false,
        aggregation: None,
        api_calls: 2,
        remark: None,
        fetched_at: Timestamp::now(),
    }))
}
