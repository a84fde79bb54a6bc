//! Tidegate's side: real processes, a real ledger, from the first byte of the submission to the last
//! settlement.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::api::line;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;

use crate::bare::per_second;
use crate::payload;

/// Batches that do nothing need more of them under way than the defaults have: as many as the reference has
/// messages.
const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\nsink = false\nwindow_min = 1000\n";
/// Keys that the batches are spread over, so that every lane has work.
const KEYS: usize = 100;
const LIMIT: Duration = Duration::from_mins(10);

/// Batches per second from submission to all settled, and how long the submission itself took.
pub async fn rate(broker: &RabbitMq, batches: usize) -> Result<(f64, Duration)> {
    let mut stack = Stack::new(broker, NOOP)?;
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    stack.set("TIDEGATE_WORKER__LOOK_AHEAD", "1000");
    stack.set("TIDEGATE_LOG", "warn");
    stack.start_coordinator().await?;
    stack.start_worker("worker").await?;
    let ndjson: String = (0..batches)
        .map(|number| line(&format!("key-{}", number % KEYS), &payload(number)))
        .collect();

    let start = Instant::now();
    let run = stack.api.submit("noop", ndjson).await?;
    let accepted = start.elapsed();
    let ended = stack.api.wait_until_ended(run.run, LIMIT).await?;
    let rate = per_second(batches, start.elapsed());
    ensure!(
        ended.batches.completed == batches as u64,
        "not all completed: {ended:?}"
    );
    Ok((rate, accepted))
}
