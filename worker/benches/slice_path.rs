//! `slice_path`: rows per second from the API's pages to committed rows in PostgreSQL, in one worker,
//! against bare binary COPY of the same rows into a table without indexes. Both alternate in one run on
//! one server; each figure is the median of its rounds.
//!
//! `cargo bench -p tidegate-worker --bench slice_path`, with `SLICES=16 IN_FLIGHT=4 ROUNDS=5` to change it.
//! `TABLES_SQL` is run on the sink's tables before the rounds, to try another index.
//! The server starts as a throw-away cluster with its default settings and `fsync` on.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

#[path = "../tests/it/support/postgres.rs"]
mod postgres;

use std::sync::Arc;
use std::time::{Duration, Instant};

use emulator::generator::Profile;
use emulator::{Emulator, Running, TestAccount};
use jiff::ToSpan;
use jiff::civil::date;
use serde_json::value::RawValue;
use shared::batch::Batch;
use shared::config::SearchConsoleConfig;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, Key, PipelineName};
use shared::outcome::Completed;
use shared::search_console::{SLICE_PIPELINE, SearchType, SlicePayload};
use sqlx::postgres::PgPoolCopyExt;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::cursor::Cursor;
use worker::handler::{BatchContext, Handler, Rows};
use worker::holding::Reporter;
use worker::jobs::search_console::Job;
use worker::jobs::search_console::slice_rows::Slice;
use worker::permits::Unlimited;
use worker::sink::postgres::PostgresSink;
use worker::sink::{Grouping, Marker, Sink};

const SITE: &str = "sc-domain:alpha.example";
const SET: &str = "page,query,country,device";

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

struct Bench {
    _emulator: Running,
    job: Job,
    sink: PostgresSink,
    pool: PgPool,
    slices: usize,
    in_flight: usize,
}

#[tokio::main]
async fn main() {
    let database = postgres::Database::create();
    let folder = tempfile::tempdir().unwrap();
    let account = TestAccount::generate("robot@project.iam.gserviceaccount.com").unwrap();
    let mut config = emulator::Config::default().unlimited();
    config.service_accounts.push(account.registration());
    config.profile = Profile::Large;
    config.cache_mb = 4_096;
    let emulator = Emulator::start(config).await.unwrap();
    let credentials = folder.path().join("key.json");
    account
        .write_key_file(&credentials, &emulator.url())
        .unwrap();
    let config = SearchConsoleConfig {
        endpoint: emulator.url().parse().unwrap(),
        credentials: Some(credentials),
        now: Some(emulator.now().timestamp()),
        ..SearchConsoleConfig::default()
    };
    let sink = Arc::new(connect(&database).await);
    let job = Job::new(&config, Arc::clone(&sink) as _).unwrap();
    drop(sink);
    let bench = Arc::new(Bench {
        _emulator: emulator,
        job,
        sink: connect(&database).await,
        pool: PgPool::connect(&database.url()).await.unwrap(),
        slices: setting("SLICES", 8),
        in_flight: setting("IN_FLIGHT", 3),
    });
    run(bench, setting("ROUNDS", 3)).await;
}

async fn connect(database: &postgres::Database) -> PostgresSink {
    let (url, hurry) = (database.url().into(), CancellationToken::new());
    let sink = PostgresSink::connect(&url, Grouping::default(), hurry).await;
    sink.unwrap()
}

async fn run(bench: Arc<Bench>, rounds: usize) {
    // Prepares the emulator's pages and the reference's bytes.
    let slices = bench.fetch_all().await;
    let rows: usize = slices.iter().map(|slice| slice.rows.len()).sum();
    let narrow = encode(&slices, narrow_row);
    let wide = encode(&slices, wide_row);
    bench.execute("CREATE TABLE bare_narrow (clicks bigint, impressions bigint, position float8, slice integer, page text, query text, country text, device text)").await;
    bench.execute("CREATE TABLE bare_wide (site_url text, search_type text, date date, page text, query text, country text, device text, clicks bigint, impressions bigint, ctr float8, position float8)").await;
    drop(slices);
    bench.slice_path(0).await;
    if let Ok(sql) = std::env::var("TABLES_SQL") {
        bench.execute(&sql).await;
    }
    let (mut path, mut bare, mut bare_wide, mut fetch) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        bare.push(bench.copy("bare_narrow", &narrow).await);
        path.push(bench.slice_path(round + 1).await);
        bare_wide.push(bench.copy("bare_wide", &wide).await);
        let start = Instant::now();
        bench.fetch_all().await;
        fetch.push(start.elapsed());
    }
    let rate = |times: &mut Vec<Duration>| {
        times.sort();
        #[allow(clippy::cast_precision_loss)]
        let rate = rows as f64 / times[times.len() / 2].as_secs_f64();
        rate.round()
    };
    let (value, reference, wide, fetch) = (
        rate(&mut path),
        rate(&mut bare),
        rate(&mut bare_wide),
        rate(&mut fetch),
    );
    println!(
        "{}",
        serde_json::json!({
            "figure": "slice_path",
            "value": value,
            "unit": "rows/s",
            "reference": "bare binary COPY into a table without indexes, same run",
            "reference_value": reference,
            "ratio": (value / reference * 1000.0).round() / 1000.0,
            "reference_value_full_width": wide,
            "ratio_full_width": (value / wide * 1000.0).round() / 1000.0,
            "fetch_and_decode_only": fetch,
            "rows": rows,
            "in_flight": bench.in_flight,
        })
    );
}

impl Bench {
    /// All slices through handler and sink, a few at a time, into empty tables.
    async fn slice_path(self: &Arc<Self>, round: usize) -> Duration {
        if round > 0 {
            self.execute(
                "TRUNCATE search_analytics_rows_page_query_country_device, search_analytics_slices",
            )
            .await;
        }
        self.execute("CHECKPOINT").await;
        let start = Instant::now();
        self.each_slice(|bench, day| async move {
            let (batch, slice) = bench.fetch(day).await;
            let marker = Marker {
                batch,
                attempt: Attempt::new(1),
                writer: Instance::from("bench".to_owned()),
                completed: Completed::default(),
                batch_key: None,
            };
            bench
                .sink
                .commit(marker, Arc::new(Rows::Slice(slice)))
                .await
                .unwrap();
        })
        .await;
        start.elapsed()
    }

    async fn fetch_all(self: &Arc<Self>) -> Vec<Box<Slice>> {
        self.each_slice(|bench, day| async move { bench.fetch(day).await.1 })
            .await
    }

    async fn fetch(&self, day: usize) -> (BatchId, Box<Slice>) {
        let payload = SlicePayload {
            property: SITE.into(),
            search_type: SearchType::Web,
            dimensions: SET.parse().unwrap(),
            date: date(2026, 2, 20) - i64::try_from(day).unwrap().days(),
            control_clicks: None,
            control_impressions: None,
            first_incomplete: None,
        };
        let batch = Batch {
            id: BatchId::generate(),
            run: RunId::generate(),
            pipeline: PipelineName::new(SLICE_PIPELINE).unwrap(),
            key: Key::default(),
            attempt: Attempt::new(1),
            payload: RawValue::from_string(serde_json::to_string(&payload).unwrap()).unwrap(),
        };
        let id = batch.id;
        let deadline = Instant::now() + Duration::from_mins(10);
        let ctx = BatchContext {
            batch: batch.into(),
            deadline,
            cancelled: CancellationToken::new(),
            permits: Unlimited::shared(),
            saved: Cursor::default(),
            reporter: Reporter::default(),
        };
        match self.job.slice().handle(payload, &ctx).await.unwrap().rows {
            Rows::Slice(slice) => (id, slice),
            other => panic!("{other:?}"),
        }
    }

    async fn each_slice<T, F, W>(self: &Arc<Self>, work: W) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
        W: Fn(Arc<Self>, usize) -> F,
    {
        let mut running = JoinSet::new();
        let mut done = Vec::new();
        for day in 0..self.slices {
            if running.len() == self.in_flight {
                done.push(running.join_next().await.unwrap().unwrap());
            }
            running.spawn(work(Arc::clone(self), day));
        }
        done.extend(running.join_all().await);
        done
    }

    async fn copy(&self, table: &str, data: &[u8]) -> Duration {
        self.execute(&format!("TRUNCATE {table}")).await;
        self.execute("CHECKPOINT").await;
        let statement = format!("COPY {table} FROM STDIN (FORMAT binary)");
        let start = Instant::now();
        let mut copy = self.pool.copy_in_raw(&statement).await.unwrap();
        for chunk in data.chunks(256 * 1024) {
            copy.send(chunk).await.unwrap();
        }
        copy.finish().await.unwrap();
        start.elapsed()
    }

    async fn execute(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .unwrap();
    }
}

fn encode(slices: &[Box<Slice>], row: fn(&mut Vec<Vec<u8>>, &Slice, usize)) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for slice in slices {
        for index in 0..slice.rows.len() {
            let mut fields = Vec::new();
            row(&mut fields, slice, index);
            out.extend_from_slice(&i16::try_from(fields.len()).unwrap().to_be_bytes());
            for field in fields {
                out.extend_from_slice(&i32::try_from(field.len()).unwrap().to_be_bytes());
                out.extend_from_slice(&field);
            }
        }
    }
    out.extend_from_slice(&(-1_i16).to_be_bytes());
    out
}

fn narrow_row(fields: &mut Vec<Vec<u8>>, slice: &Slice, index: usize) {
    let row = slice.rows.row(index);
    fields.push(row.numbers.clicks.to_be_bytes().to_vec());
    fields.push(row.numbers.impressions.to_be_bytes().to_vec());
    fields.push(
        row.numbers
            .position
            .unwrap_or_default()
            .to_be_bytes()
            .to_vec(),
    );
    fields.push(7_i32.to_be_bytes().to_vec());
    fields.extend(row.keys().map(|key| key.as_bytes().to_vec()));
}

fn wide_row(fields: &mut Vec<Vec<u8>>, slice: &Slice, index: usize) {
    let row = slice.rows.row(index);
    let days = date(2000, 1, 1).until(slice.id.date).unwrap().get_days();
    fields.push(SITE.as_bytes().to_vec());
    fields.push(b"web".to_vec());
    fields.push(days.to_be_bytes().to_vec());
    fields.extend(row.keys().map(|key| key.as_bytes().to_vec()));
    fields.push(row.numbers.clicks.to_be_bytes().to_vec());
    fields.push(row.numbers.impressions.to_be_bytes().to_vec());
    fields.push(0.1_f64.to_be_bytes().to_vec());
    fields.push(
        row.numbers
            .position
            .unwrap_or_default()
            .to_be_bytes()
            .to_vec(),
    );
}
