//! Tidegate's side: real processes, a real ledger.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::api::line;
use harness::processes::Memory;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;

use crate::{micros_each, payload, per_second};

/// The pipeline that does nothing.
pub const PIPELINE: &str = "noop";
/// Batches that do nothing need more of them under way than the defaults have: as many as the reference has
/// messages.
const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\nsink = false\nwindow_min = 1000\n";
/// Keys that the batches are spread over, so that every lane has work.
const KEYS: usize = 100;
const LIMIT: Duration = Duration::from_mins(10);

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
pub async fn start(broker: &RabbitMq) -> Result<Stack<'_>> {
    let mut stack = Stack::new(broker, NOOP)?;
    stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
    stack.set("TIDEGATE_WORKER__LOOK_AHEAD", "1000");
    stack.set("TIDEGATE_LOG", "warn");
    stack.start_coordinator().await?;
    Ok(stack)
}

/// So many lines of a submission.
#[must_use]
pub fn lines(batches: usize) -> String {
    (0..batches)
        .map(|number| line(&format!("key-{}", number % KEYS), &payload(number)))
        .collect()
}

/// From the first byte of a submission to the last settlement.
pub async fn round(broker: &RabbitMq, batches: usize) -> Result<Round> {
    let mut stack = start(broker).await?;
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
    let mut stack = start(broker).await?;
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
