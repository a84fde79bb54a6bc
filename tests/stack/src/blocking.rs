//! Scenarios with handlers that block their threads or a process that is frozen: the broker must not notice.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coordinator::run::Run;
use harness::api::line;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use harness::wait;
use nix::sys::signal::Signal;

use crate::BLOCKING;

/// Threads of the worker's handlers: all of them are blocked.
const THREADS: usize = 2;
const SOON: Duration = Duration::from_secs(30);

/// An installation with one `blocking-worker`. `settings` are added to the pipeline's section.
pub async fn start<'a>(
    broker: &'a RabbitMq,
    settings: &str,
    environment: &[(&str, &str)],
) -> Result<Stack<'a>> {
    let pipeline = format!("[pipelines.{BLOCKING}]\n{settings}\n");
    let mut stack = Stack::new(broker, &pipeline)?;
    stack.set("TIDEGATE_WORKER__PIPELINES", BLOCKING);
    stack.set("TIDEGATE_WORKER__THREADS", THREADS.to_string());
    for (name, value) in environment {
        stack.set(name, *value);
    }
    stack.start_coordinator().await?;
    stack.spawn_worker_of("blocking-worker", "a")?;
    Ok(stack)
}

/// Batches that block for these spans.
#[must_use]
pub fn batches(spans: &[Duration]) -> String {
    let line = |(n, span): (usize, &Duration)| {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        line(&format!("key-{n}"), &millis.into())
    };
    spans.iter().enumerate().map(line).collect()
}

/// Waits until so many handlers were started.
pub async fn wait_for_starts(stack: &Stack<'_>, count: usize) -> Result<()> {
    let path = stack.scratch().path().join("starts");
    let what = format!("{count} handlers to start");
    wait::until(&what, SOON, async || {
        let starts = fs::read_to_string(&path).unwrap_or_default();
        Ok((starts.lines().count() >= count).then_some(()))
    })
    .await
}

/// Blocks every handler thread for this long, with more batches waiting: the worker keeps its connections and
/// answers its probes, and nothing is delivered twice.
pub async fn block_everything(
    broker: &RabbitMq,
    block: Duration,
    heartbeat: Duration,
) -> Result<()> {
    let heartbeat = format!("{}s", heartbeat.as_secs());
    let mut stack = start(broker, "", &[("TIDEGATE_BROKER__HEARTBEAT", &heartbeat)]).await?;
    let mut spans = vec![block; THREADS];
    spans.resize(3 * THREADS, Duration::from_millis(1));
    let run = stack.api.submit(BLOCKING, batches(&spans)).await?;
    wait_for_starts(&stack, THREADS).await?;
    let consuming = stack.worker_metric("a", "tidegate_consuming").await?;
    ensure!(consuming == Some(1.0), "{consuming:?}");

    let ended = stack.api.wait_until_ended(run.run, block + SOON).await?;
    nothing_was_lost(&mut stack, &ended, spans.len()).await
}

/// Freezes the worker for this long in the middle of its batches, while another one takes them over.
pub async fn freeze(broker: &RabbitMq, frozen: Duration, heartbeat: Duration) -> Result<()> {
    let heartbeat = format!("{}s", heartbeat.as_secs());
    let mut stack = start(broker, "", &[("TIDEGATE_BROKER__HEARTBEAT", &heartbeat)]).await?;
    let spans = [Duration::from_secs(2); 2 * THREADS];
    let run = stack.api.submit(BLOCKING, batches(&spans)).await?;
    wait_for_starts(&stack, THREADS).await?;
    stack.worker("a").signal(Signal::SIGSTOP)?;
    stack.spawn_worker_of("blocking-worker", "b")?;
    tokio::time::sleep(frozen).await;
    stack.worker("a").signal(Signal::SIGCONT)?;
    let ended = stack.api.wait_until_ended(run.run, SOON).await?;
    // What the woken one still has is settled, too, before the effects are counted.
    for name in ["a", "b"] {
        stack.worker(name).terminate(SOON)?;
    }
    once(&stack, &ended, spans.len()).await
}

/// Every batch completed at its first attempt, on one connection, with one effect.
async fn nothing_was_lost(stack: &mut Stack<'_>, ended: &Run, batches: usize) -> Result<()> {
    for lost in ["tidegate_sessions_lost_total", "tidegate_redelivered_total"] {
        let count = stack.worker_metric("a", lost).await?;
        ensure!(count.is_none(), "{lost}: {count:?}");
    }
    once(stack, ended, batches).await
}

/// Every batch completed, none was retried, and each has one effect.
async fn once(stack: &Stack<'_>, ended: &Run, batches: usize) -> Result<()> {
    let batches = u64::try_from(batches)?;
    let seen = (ended.batches.completed, ended.retries, ended.rows);
    ensure!(seen == (batches, 0, batches), "{ended:?}");
    let sink = stack.sink().await.context("the sink")?;
    for counted in ["count(*)", "count(distinct batch)"] {
        let rows = sink
            .number(&format!("select {counted} from results"))
            .await?;
        ensure!(rows == batches, "{counted}: {rows}");
    }
    Ok(())
}
