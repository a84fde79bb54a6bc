//! Tidegate's side: real processes, a real ledger.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use futures::future::try_join_all;
use harness::api::{Api, line};
use harness::postgres;
use harness::processes::Memory;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use serde_json::json;
use shared::id::RunId;

use crate::stamp::{self, Stamped};
use crate::{micros_each, payload, per_second};

/// The pipeline that does nothing.
const PIPELINE: &str = "noop";
/// Batches that do nothing need more of them under way than the defaults have: as many as the reference has
/// messages, unconfirmed ones and unacked ones.
const NOOP: &str =
    "[pipelines.noop]\nhandler = \"noop\"\nsink = false\nwindow_min = 2000\nwindow_max = 2000\n";
/// With the defaults of any pipeline; the handler is the program's own.
const STAMPED: &str = "[pipelines.stamped]\nsink = false\n";
/// Batches that are not measured, one after the other: whatever is set up on first use is there then.
const WARM_UP: usize = 20;
/// Keys that the batches are spread over, so that every lane has work.
const KEYS: usize = 100;
const LIMIT: Duration = Duration::from_mins(10);

/// Which database holds the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ledger {
    /// A file.
    Sqlite,
    /// A server of its own, which syncs every commit.
    Postgres,
}

impl Ledger {
    /// A figure's name with this ledger.
    #[must_use]
    pub fn figure(self, figure: &str) -> String {
        match self {
            Self::Sqlite => figure.to_owned(),
            Self::Postgres => format!("{figure}_postgres"),
        }
    }
}

/// One round of `end_to_end`.
#[derive(Debug)]
pub struct Round {
    batches: usize,
    /// Until the submission was answered.
    accepted: Duration,
    /// Until all was settled.
    settled: Duration,
    /// Processor time of the coordinator.
    coordinator: Duration,
    /// Processor time of the worker.
    worker: Duration,
    /// For how many seconds the coordinator was publishing, recording, settling.
    busy: [f64; 3],
}

/// A coordinator without workers.
async fn start(broker: &RabbitMq, ledger: Ledger) -> Result<Stack<'_>> {
    let mut stack = Stack::new(broker, NOOP)?;
    if ledger == Ledger::Postgres {
        stack.set("TIDEGATE_LEDGER__URL", postgres::shared().new_database()?);
    }
    stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
    stack.set("TIDEGATE_WORKER__LOOK_AHEAD", "1000");
    stack.set("TIDEGATE_LOG", "warn");
    stack.start_coordinator().await?;
    Ok(stack)
}

/// So many lines of a submission.
fn lines(batches: usize) -> String {
    (0..batches)
        .map(|number| line(&format!("key-{}", number % KEYS), &payload(number)))
        .collect()
}

/// From the first byte of a submission to the last settlement.
pub async fn round(broker: &RabbitMq, ledger: Ledger, batches: usize) -> Result<Round> {
    let mut stack = start(broker, ledger).await?;
    stack.start_worker("worker").await?;
    let ndjson = lines(batches);

    let start = Instant::now();
    let run = stack.api.submit(PIPELINE, ndjson).await?;
    let accepted = start.elapsed();
    let ended = stack.api.wait_until_ended(run.run, LIMIT).await?;
    let settled = start.elapsed();
    ensure!(
        ended.batches.completed == batches as u64,
        "not all completed: {ended:?}"
    );
    let mut busy = [0.0; 3];
    for (busy, stage) in busy.iter_mut().zip(["publish", "record", "settle"]) {
        let sum = format!("tidegate_{stage}_seconds_sum");
        *busy = stack.api.metric(&sum).await?.unwrap_or_default();
    }
    Ok(Round {
        batches,
        accepted,
        settled,
        coordinator: stack.coordinator().cpu_time()?,
        worker: stack.worker("worker").cpu_time()?,
        busy,
    })
}

/// What a worker costs.
#[derive(Debug, Clone, Copy)]
pub struct WorkerCost {
    /// Its memory before the first batch.
    pub idle: Memory,
    /// Its processor time, without that of its start.
    pub cpu: Duration,
}

/// What so many batches that do nothing cost their worker.
pub async fn worker_cost(broker: &RabbitMq, batches: usize) -> Result<WorkerCost> {
    let mut stack = start(broker, Ledger::Sqlite).await?;
    stack.start_worker("worker").await?;
    let worker = stack.worker("worker");
    let (idle, before) = (worker.memory()?, worker.cpu_time()?);
    let run = stack.api.submit(PIPELINE, lines(batches)).await?;
    let ended = stack.api.wait_until_ended(run.run, LIMIT).await?;
    ensure!(
        ended.batches.completed == batches as u64,
        "not all completed: {ended:?}"
    );
    let cpu = stack.worker("worker").cpu_time()?.saturating_sub(before);
    Ok(WorkerCost { idle, cpu })
}

/// Batches per second from the first byte of a submission to its acceptance, with nobody to work on them.
pub async fn submit(broker: &RabbitMq, ledger: Ledger, batches: usize) -> Result<f64> {
    let stack = start(broker, ledger).await?;
    let ndjson = lines(batches);
    let start = Instant::now();
    let run = stack.api.submit(PIPELINE, ndjson).await?;
    let rate = per_second(batches, start.elapsed());
    ensure!(run.batches.accepted == batches as u64, "not all: {run:?}");
    Ok(rate)
}

/// How long each of so many batches takes from the client's request to the start of its handler, one
/// submitted every `pause`.
pub async fn waits(broker: &RabbitMq, batches: usize, pause: Duration) -> Result<Vec<Duration>> {
    let mut stack = Stack::new(broker, STAMPED)?;
    stack.set("TIDEGATE_WORKER__PIPELINES", stamp::PIPELINE);
    stack.set("TIDEGATE_LOG", "warn");
    stack.start_coordinator().await?;
    stack.spawn_worker_of("stamping-worker", "worker")?;
    for number in 0..WARM_UP {
        let run = submit_stamped(stack.api.clone(), number).await?;
        waited(&stack.api, run).await?;
    }
    // Each on its own: one that takes long does not hold up the next, as clients do not wait for each other.
    let mut ticks = tokio::time::interval(pause);
    let mut submitting = Vec::with_capacity(batches);
    for number in 0..batches {
        ticks.tick().await;
        submitting.push(tokio::spawn(submit_stamped(stack.api.clone(), number)));
    }
    let mut waits = Vec::with_capacity(batches);
    for run in try_join_all(submitting).await? {
        waits.push(waited(&stack.api, run?).await?);
    }
    Ok(waits)
}

async fn submit_stamped(api: Api, number: usize) -> Result<RunId> {
    let key = format!("key-{}", number % KEYS);
    let stamped = line(&key, &json!(Stamped::now(number)));
    Ok(api.submit(stamp::PIPELINE, stamped).await?.run)
}

/// How long the one batch of a run took to reach its handler.
async fn waited(api: &Api, run: RunId) -> Result<Duration> {
    let ended = api.wait_until_ended(run, LIMIT).await?;
    let micros = ended.statistics.get(stamp::WAITED);
    let micros = micros.with_context(|| format!("it was not handled: {ended:?}"))?;
    Ok(Duration::from_micros(*micros))
}

impl Round {
    /// Batches per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        per_second(self.batches, self.settled)
    }

    /// Where the time went, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let [publishing, recording, settling] = self
            .busy
            .map(|seconds| 100.0 * seconds / self.settled.as_secs_f64());
        format!(
            "tidegate {:.0} batches/s; accepted after {:.1} s; publishing {publishing:.0} %, recording \
             {recording:.0} %, settling {settling:.0} % of the time; processor µs a batch: coordinator {}, worker {}",
            self.rate(),
            self.accepted.as_secs_f32(),
            micros_each(self.coordinator, self.batches),
            micros_each(self.worker, self.batches),
        )
    }
}
