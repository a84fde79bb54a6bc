//! The workers, as they describe themselves.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Instant;

use tokio::time::timeout;

use super::{Check, Doctor, PATIENCE};
use crate::fleet::Worker;
use crate::run::PipelineCounts;

impl Doctor {
    pub(super) async fn workers(&self) -> Vec<Check> {
        let workers = {
            let fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
            fleet.workers(Instant::now())
        };
        // A ledger that does not answer is told of elsewhere.
        let counts = match timeout(PATIENCE, self.ledger.pipelines()).await {
            Ok(Ok(counts)) => counts,
            _ => Vec::new(),
        };
        vec![
            presence(&workers, &counts),
            versions(&workers),
            lanes(&workers, self.config.lanes),
            clocks(&workers),
        ]
    }
}

/// Whether somebody works on what waits.
fn presence(workers: &[Worker], counts: &[PipelineCounts]) -> Check {
    const NAME: &str = "workers";
    let at_work = workers.iter().filter(|worker| !worker.draining);
    let served: BTreeSet<_> = at_work
        .clone()
        .flat_map(|worker| &worker.pipelines)
        .collect();
    let slots: u64 = at_work.clone().map(|worker| u64::from(worker.slots)).sum();
    let stuck: Vec<String> = counts
        .iter()
        .filter(|counts| counts.pending + counts.out > 0 && !served.contains(&counts.pipeline))
        .map(|counts| counts.pipeline.to_string())
        .collect();
    let detail = format!("{} are live, with {slots} slots", at_work.count());
    if !stuck.is_empty() {
        return Check::warn(
            NAME,
            format!("{detail}; nobody works on {}", stuck.join(", ")),
        )
        .advise("start a worker that serves them (worker.pipelines)");
    }
    if workers.is_empty() {
        return Check::warn(NAME, "none is live").advise("start one: batches wait until then");
    }
    Check::ok(NAME, detail)
}

/// Whether they all are of the coordinator's version.
fn versions(workers: &[Worker]) -> Check {
    const NAME: &str = "workers.versions";
    const OWN: &str = env!("CARGO_PKG_VERSION");
    let versions: BTreeSet<&str> = workers
        .iter()
        .map(|worker| worker.version.as_str())
        .collect();
    let others: Vec<&str> = versions
        .into_iter()
        .filter(|version| *version != OWN)
        .collect();
    if others.is_empty() {
        Check::ok(NAME, format!("all are {OWN}, as the coordinator"))
    } else {
        Check::warn(
            NAME,
            format!("some are {}, the coordinator is {OWN}", others.join(", ")),
        )
        .advise("fine during an upgrade; otherwise finish it")
    }
}

/// Whether they consume the queues that the coordinator fills.
fn lanes(workers: &[Worker], own: u16) -> Check {
    const NAME: &str = "workers.lanes";
    let others: Vec<String> = workers
        .iter()
        .filter_map(|worker| Some((worker, worker.lanes.filter(|lanes| *lanes != own)?)))
        .map(|(worker, lanes)| format!("{} has {lanes}", worker.worker))
        .collect();
    if others.is_empty() {
        Check::ok(NAME, format!("all have {own}, as the coordinator"))
    } else {
        Check::fail(
            NAME,
            format!("{}; the coordinator has {own}", others.join(", ")),
        )
        .advise("give all of them the same `lanes`: some queues have no worker")
    }
}

/// Whether their clocks agree with the coordinator's. Nothing depends on it but what people read in logs.
fn clocks(workers: &[Worker]) -> Check {
    const NAME: &str = "workers.clocks";
    const MOST_MS: u64 = 5_000;
    let others: Vec<String> = workers
        .iter()
        .filter_map(|worker| Some((worker, worker.clock_skew_ms?)))
        .filter(|(_, skew)| skew.unsigned_abs() > MOST_MS)
        .map(|(worker, skew)| format!("{} by {skew} ms", worker.worker))
        .collect();
    if others.is_empty() {
        Check::ok(NAME, "all agree with the coordinator's within 5 s")
    } else {
        Check::warn(NAME, format!("some are off: {}", others.join(", ")))
            .advise("synchronise them (NTP): times in logs cannot be compared")
    }
}

#[cfg(test)]
mod tests {
    use shared::name::Instance;

    use super::*;
    use crate::doctor::Finding;

    #[test]
    fn slots_that_cannot_be_add_up_all_the_same() {
        let boaster = Worker {
            worker: Instance::from("boaster".to_owned()),
            version: String::new(),
            pipelines: vec![],
            slots: u32::MAX,
            holding: vec![],
            draining: false,
            seen_ms_ago: 0,
            memory_bytes: None,
            lanes: None,
            clock_skew_ms: None,
        };
        let check = presence(&[boaster.clone(), boaster], &[]);
        assert_eq!(check.finding, Finding::Ok);
        assert!(check.detail.contains("8589934590 slots"), "{check:?}");
    }
}
