//! A fleet is replaced, one worker after the other, while it works.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coordinator::run::Run;
use harness::rabbitmq::RabbitMq;

use crate::sleeper::{Done, PIPELINE, Sleeper, Task, lines, taken_over};

/// Workers of the fleet.
const FLEET: u32 = 4;
const SLOTS: u32 = 4;
/// How long a worker may take to finish what it runs.
const DRAIN: Duration = Duration::from_secs(5);
/// From a batch's return to the broker to its outcome, on a machine that is busy: far below `reconcile.after`.
const REDELIVERY: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_mins(5);

/// What the replacement did to the batches.
#[derive(Debug, Clone, Copy)]
pub struct Rolled {
    /// From dispatch to settlement, of the batch that took longest.
    pub longest: Duration,
    /// Deliveries that came a second time.
    pub redelivered: usize,
    /// From the first SIGTERM to the last replacement.
    pub took: Duration,
}

/// Replaces all four workers during a run of so many batches, of 20 to 100 ms each. Insists on exit codes, on rows
/// that equal the truth, on attempts, none of which is burnt, and on no batch being held up for longer than a drain
/// and a redelivery.
pub async fn fleet_of_four(broker: &RabbitMq, batches: u32) -> Result<Rolled> {
    let mut fleet = Sleeper::start(broker, SLOTS, DRAIN).await?;
    for number in 0..FLEET {
        fleet.start_worker(&format!("old-{number}")).await?;
    }
    let task = |n| Task {
        n,
        ms: Some(20 + u64::from(n * 7 % 80)),
    };
    let run = fleet
        .stack
        .api
        .submit(PIPELINE, lines((0..batches).map(task)))
        .await?;
    let reached = |run: &Run, share: u32| run.batches.completed >= u64::from(batches * share / 100);
    let api = fleet.stack.api.clone();
    api.wait_for_run(run.run, "work to begin", LIMIT, |run| reached(run, 5))
        .await?;

    let started = Instant::now();
    for number in 0..FLEET {
        api.wait_for_run(run.run, "work to go on", LIMIT, |run| {
            reached(run, 15 * (number + 1))
        })
        .await?;
        let old = fleet.stack.worker(&format!("old-{number}"));
        let status = old.terminate(LIMIT)?;
        ensure!(status.success(), "it drained with {status}");
        fleet.start_worker(&format!("new-{number}")).await?;
    }
    let took = started.elapsed();
    let now = api.run(run.run).await?;
    ensure!(
        !now.has_ended(),
        "the run was over before the last worker was replaced: {now:?}"
    );

    let ended = api.wait_until_ended(run.run, LIMIT).await?;
    ensure!(
        ended.batches.completed == u64::from(batches) && ended.retries == 0,
        "not all completed at the first attempt: {ended:?}"
    );
    ensure_truth(&fleet.rows().await?, batches)?;
    let mut redelivered = 0;
    for number in 0..FLEET {
        for age in ["old", "new"] {
            let log = fleet.stack.worker(&format!("{age}-{number}")).output()?;
            redelivered += taken_over(&log).len();
        }
    }
    ensure!(redelivered > 0, "no worker gave anything back");
    let longest = longest(&fleet).await?;
    ensure!(longest < DRAIN + REDELIVERY, "a batch took {longest:?}");
    Ok(Rolled {
        longest,
        redelivered,
        took,
    })
}

/// Each number exactly once, by old workers and by new ones.
fn ensure_truth(rows: &[Done], batches: u32) -> Result<()> {
    let numbers: BTreeSet<u32> = rows.iter().map(|row| row.n).collect();
    ensure!(
        rows.len() == batches as usize && numbers == (0..batches).collect(),
        "{} rows of {} batches, {batches} were submitted",
        rows.len(),
        numbers.len()
    );
    for number in 0..FLEET {
        for age in ["old", "new"] {
            let name = format!("{age}-{number}");
            ensure!(
                rows.iter().any(|row| row.worker == name),
                "{name} did nothing"
            );
        }
    }
    Ok(())
}

/// By the ledger, which knows when each batch went out and when it was completed.
async fn longest(fleet: &Sleeper<'_>) -> Result<Duration> {
    let ledger = fleet.stack.ledger().await?;
    let again = ledger
        .texts("select count(*) || '' from batches where attempt <> 1")
        .await?;
    ensure!(again == ["0"], "{again:?} batches went out more than once");
    let longest = ledger
        .texts("select max(due - out_at) || '' from batches")
        .await?;
    let millis = longest.first().context("there are batches")?.parse()?;
    Ok(Duration::from_millis(millis))
}
