//! Two tenants of very different size share one pipeline.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coordinator::run::Run;
use harness::api::line;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use serde_json::json;

use crate::ABORTING;

/// Batches of the small tenant.
const FEW: u32 = 10;
/// Batches that run at a time; each takes 200 ms.
const SLOTS: u32 = 4;
/// Batches that are out at a time.
const WINDOW: u32 = 16;
/// How long the large tenant's speed is looked at.
const LOOK: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_mins(2);

/// How long the small tenant had to wait.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// With nobody else there.
    pub alone: Duration,
    /// Behind the large tenant.
    pub together: Duration,
    /// What one window of batches takes.
    pub window: Duration,
}

/// Lets a tenant with so many batches go first, and then one with ten.
pub async fn two_tenants(broker: &RabbitMq, many: u32) -> Result<Waits> {
    let pipeline =
        format!("[pipelines.{ABORTING}]\nwindow_max = {WINDOW}\nlook_ahead = {WINDOW}\n");
    let mut stack = Stack::new(broker, &pipeline)?;
    stack.set("TIDEGATE_WORKER__PIPELINES", ABORTING);
    stack.set("TIDEGATE_WORKER__SLOTS", SLOTS.to_string());
    stack.set("TIDEGATE_WORKER__LOOK_AHEAD", "0");
    stack.set("TIDEGATE_LOG", "warn");
    stack.start_coordinator().await?;
    stack.spawn_worker_of("aborting-worker", "a")?;
    // The first one waits for the worker to come up.
    submit(&stack, "small", FEW).await?;
    let alone = submit(&stack, "small", FEW).await?;

    let lines = (0..many).map(|n| line("large", &json!(n))).collect();
    let large = stack.api.submit(ABORTING, lines).await?.run;
    let goes_on = |run: &Run| run.batches.completed >= u64::from(WINDOW);
    let api = &stack.api;
    let before = api
        .wait_for_run(large, "work on it", LIMIT, goes_on)
        .await?;
    let looked = Instant::now();
    tokio::time::sleep(LOOK).await;
    let after = api.run(large).await?;
    let done = after.batches.completed - before.batches.completed;
    ensure!(done > 0, "the large tenant stands still: {after:?}");
    let each = looked.elapsed().div_f64(f64::from(u32::try_from(done)?));

    let together = submit(&stack, "small", FEW).await?;
    let left = api.run(large).await?.batches;
    ensure!(
        left.pending > 0,
        "the large tenant was done before: {left:?}"
    );
    Ok(Waits {
        alone,
        together,
        window: each * WINDOW,
    })
}

/// How long a run of so many batches takes, from its acceptance to its end.
async fn submit(stack: &Stack<'_>, key: &str, count: u32) -> Result<Duration> {
    let lines = (0..count).map(|n| line(key, &json!(n))).collect();
    let run = stack.api.submit(ABORTING, lines).await?;
    let ended = stack.api.wait_until_ended(run.run, LIMIT).await?;
    ensure!(ended.batches.completed == u64::from(count), "{ended:?}");
    let finished = ended.finished_at.context("an end")?;
    Ok(finished.duration_since(ended.created_at).try_into()?)
}
