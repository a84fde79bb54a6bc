//! A coordinator that starts with a large backlog.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::api::line;
use harness::processes::Memory;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use harness::wait;
use serde_json::json;

const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\nsink = false\n";
/// Batches of one key.
const PER_KEY: u32 = 100;
/// Long enough for submitting and for working, on a busy machine.
const LIMIT: Duration = Duration::from_mins(5);

/// What a restart was like.
#[derive(Debug, Clone, Copy)]
pub struct Restart {
    /// From the start of the process to the first confirmed publish.
    pub first_publish: Duration,
    /// The process's memory after that, with work going on.
    pub memory: Memory,
}

/// Kills the coordinator with so many batches pending, and starts it again.
pub async fn restart_with_pending(broker: &RabbitMq, pending: u32) -> Result<Restart> {
    let mut stack = Stack::new(broker, NOOP)?;
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    stack.set("TIDEGATE_LOG", "warn");
    stack.start_coordinator().await?;
    let lines = (0..pending)
        .map(|n| line(&format!("key-{}", n / PER_KEY), &json!({ "n": n })))
        .collect();
    let run = stack.api.submit("noop", lines).await?.run;
    stack.coordinator().kill()?;
    // What was out is done when the coordinator is back, so that there is room in the window.
    stack.spawn_worker("a")?;
    wait::until("what was out to be done", LIMIT, async || {
        let depths = stack.vhost().queue_depths()?;
        let mut work = depths
            .iter()
            .filter(|(name, _)| name.starts_with("tidegate.work.noop."));
        Ok(work.all(|(_, depth)| depth.total() == 0).then_some(()))
    })
    .await?;

    let started = Instant::now();
    stack.spawn_coordinator()?;
    wait::until("the first publish", LIMIT, async || {
        let published = stack.api.metric("tidegate_published_total").await;
        Ok(published.unwrap_or_default().filter(|count| *count > 0.0))
    })
    .await?;
    let first_publish = started.elapsed();
    let some = |run: &coordinator::run::Run| run.batches.completed > 1_000;
    let now = stack
        .api
        .wait_for_run(run, "work to go on", LIMIT, some)
        .await?;
    let left = now.batches.pending;
    ensure!(left > u64::from(pending / 2), "no backlog is left: {now:?}");
    Ok(Restart {
        first_publish,
        memory: stack.coordinator().memory()?,
    })
}
