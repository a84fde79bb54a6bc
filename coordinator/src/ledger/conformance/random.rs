//! Anything in any order: the counters agree with the batches after every step.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use shared::id::{BatchId, RunId};
use shared::name::Attempt;

use super::{
    Backend, after, asks_for, audit, batches, complete, hold, kill, new_run, retry, submit_as,
    worker,
};
use crate::ledger::{DeadFilter, Judged, Ledger, NewRun, Verdict};
use crate::run::RunState;

const STEPS: u64 = 150;

pub(super) async fn counts_agree_whatever_happens(backend: &impl Backend) {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut ledger = backend.open().await;
    let mut runs = Vec::new();
    for step in 0..STEPS {
        let did = match random.random_range(0..100) {
            _ if runs.is_empty() => 0,
            0 => {
                drop(ledger);
                ledger = backend.open().await;
                1
            }
            choice => choice,
        };
        let done = act(&ledger, did, step, &mut runs, &mut random).await;
        // Tells the seed when it fails: the panic says no more than what differs.
        let look = std::panic::AssertUnwindSafe(audit(&ledger));
        let agrees = futures::FutureExt::catch_unwind(look).await;
        assert!(agrees.is_ok(), "seed {seed}, step {step}: after {done}");
    }
    finish(&ledger, &runs).await;
}

pub(super) async fn counts_agree_when_much_happens_at_once(backend: &impl Backend) {
    let ledger = &backend.open().await;
    let mut runs = Vec::new();
    for _ in 0..4 {
        runs.push(submit_as(ledger, new_run(), &batches("a", 30)).await);
    }
    // Nobody submits or reopens; everybody changes the same runs.
    let walk = async |seed: u64| {
        let (mut random, mut runs) = (StdRng::seed_from_u64(seed), runs.clone());
        for step in 0..STEPS {
            let choice = random.random_range(6..100);
            act(ledger, choice, step, &mut runs, &mut random).await;
        }
    };
    let walkers = (0..6).map(|_| walk(rand::random()));
    futures::future::join_all(walkers).await;
    audit(ledger).await;
}

async fn act(
    ledger: &impl Ledger,
    choice: u32,
    step: u64,
    runs: &mut Vec<RunId>,
    random: &mut StdRng,
) -> String {
    let now = after(step);
    let run = runs.choose(random).copied();
    match (choice, run) {
        (0..6, _) | (_, None) => {
            let count = random.random_range(1..12);
            let batches = [batches("a", count), batches("b", count / 2)].concat();
            runs.push(
                submit_as(
                    ledger,
                    NewRun {
                        webhook: Some("u".into()),
                        ..new_run()
                    },
                    &batches,
                )
                .await,
            );
            "submit".into()
        }
        (6..40, Some(run)) => {
            let mut dispatched = Vec::new();
            for batch in some(ledger, run, random).await {
                // Now and then an attempt that is not the next one.
                let ahead = u32::from(random.random_ratio(9, 10));
                dispatched.push((batch.0, Attempt::new(batch.1 + ahead)));
            }
            ledger.record_out(&dispatched, now).await.unwrap();
            format!("record_out {dispatched:?}")
        }
        (40..80, Some(run)) => {
            let mut outcomes = Vec::new();
            for (batch, attempts) in some(ledger, run, random).await {
                outcomes.push(Judged {
                    batch,
                    attempt: Attempt::new(attempts + random.random_range(0..2)),
                    worker: Some(worker()),
                    took: None,
                    verdict: verdict(random),
                });
            }
            ledger.settle(&outcomes, now).await.unwrap();
            format!("settle {outcomes:?}")
        }
        (80..83, Some(run)) => {
            ledger.cancel(run, now).await.unwrap();
            format!("cancel {run}")
        }
        (83..87, Some(run)) => {
            let limit = random.random_range(0..8);
            ledger.cancel_pending(run, limit, now).await.unwrap();
            format!("cancel_pending {limit} of {run}")
        }
        (87..92, Some(run)) => {
            let paused = random.random_bool(0.5);
            ledger.pause(run, paused).await.unwrap();
            format!("pause {paused} {run}")
        }
        (92..97, Some(_)) => {
            let limit = random.random_range(1..8);
            let filter = DeadFilter::default();
            ledger
                .redrive(&filter, limit, now, Duration::from_millis(7))
                .await
                .unwrap();
            format!("redrive {limit}")
        }
        (_, Some(run)) => {
            let filter = DeadFilter {
                run: Some(run),
                ..DeadFilter::default()
            };
            ledger.discard(&filter, 3, now).await.unwrap();
            format!("discard of {run}")
        }
    }
}

/// Some batches of a run, with the number of their attempts; some of them twice.
async fn some(ledger: &impl Ledger, run: RunId, random: &mut StdRng) -> Vec<(BatchId, u32)> {
    let batches = ledger.batches(run, None, None, 1_000).await.unwrap();
    (0..random.random_range(1..10))
        .filter_map(|_| batches.choose(random))
        .map(|batch| (batch.batch, batch.attempts))
        .collect()
}

fn verdict(random: &mut StdRng) -> Verdict {
    match random.random_range(0..10) {
        0..4 => complete(1),
        4 => asks_for(&["a", "c", "a"]),
        5 => retry(2),
        6 => hold(),
        7 => Verdict::Release {
            reason: "unsupported_version".into(),
        },
        8 => Verdict::Lose,
        _ => kill("failed"),
    }
}

/// Whatever happened, every run can be finished.
async fn finish(ledger: &impl Ledger, runs: &[RunId]) {
    for run in runs {
        ledger.pause(*run, false).await.unwrap();
        ledger
            .cancel_pending(*run, 10_000, after(STEPS))
            .await
            .unwrap();
        let outcomes: Vec<_> = ledger
            .batches(*run, None, None, 1_000)
            .await
            .unwrap()
            .iter()
            .flat_map(|batch| [batch.attempts, batch.attempts + 1].map(|n| (batch.batch, n)))
            .map(|(batch, attempt)| Judged {
                batch,
                attempt: Attempt::new(attempt),
                worker: None,
                took: None,
                verdict: complete(1),
            })
            .collect();
        ledger.settle(&outcomes, after(STEPS)).await.unwrap();
        audit(ledger).await;
        let run = ledger.run(*run).await.unwrap().unwrap();
        assert_eq!(run.batches.completed, run.batches.accepted);
        assert!(
            matches!(run.state, RunState::Completed | RunState::Cancelled),
            "{run:?}"
        );
    }
    let webhooks = ledger.webhooks_due(after(STEPS), 10_000).await.unwrap();
    assert_eq!(webhooks.len(), runs.len());
}
