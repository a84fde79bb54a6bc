//! What becomes of dead batches.

use std::time::Duration;

use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, PipelineName};

use super::{
    Backend, NOW, after, batches, complete, detail, judged, key, kill, pipeline, retry, send_out,
    settle, submit, view,
};
use crate::ledger::{
    DeadFilter, DispatchLedger, Effect, Ledger, LedgerViews, NewBatch, OperationsLedger,
    OperatorViews, ReconciliationLedger, Redriven,
};
use crate::run::{BatchState, RunState};

/// Batches that died one second after the other.
async fn bury(ledger: &impl Ledger, batches: &[NewBatch], attempt: u32, from: Timestamp) {
    send_out(ledger, batches, attempt).await;
    for (batch, second) in batches.iter().zip(0..) {
        let died_at = from + Duration::from_secs(second);
        let reason = if second == 0 { "first" } else { "other" };
        let outcome = judged(batch, attempt, kill(reason));
        ledger.settle(&[outcome], died_at).await.unwrap();
    }
}

fn everything() -> DeadFilter {
    DeadFilter::default()
}

fn of_run(run: RunId) -> DeadFilter {
    DeadFilter {
        run: Some(run),
        ..everything()
    }
}

pub(super) async fn filters_choose(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = [batches("a", 3), batches("b", 2)].concat();
    let run = submit(&ledger, &submitted).await;
    bury(&ledger, &submitted, 1, NOW).await;
    let (others, alive) = (batches("a", 1), batches("a", 2));
    let other_run = submit(&ledger, &others).await;
    bury(&ledger, &others, 1, after(100)).await;
    submit(&ledger, &alive).await;

    let all = everything();
    let filters = [
        (all.clone(), vec![0, 1, 2, 3, 4, 5]),
        (of_run(run), vec![0, 1, 2, 3, 4]),
        (of_run(other_run), vec![5]),
        (of_run(RunId::generate()), vec![]),
        (
            DeadFilter {
                key: Some(key("b")),
                ..all.clone()
            },
            vec![3, 4],
        ),
        (
            DeadFilter {
                pipeline: Some(pipeline()),
                ..all.clone()
            },
            vec![0, 1, 2, 3, 4, 5],
        ),
        (
            DeadFilter {
                pipeline: Some(PipelineName::new("x").unwrap()),
                ..all.clone()
            },
            vec![],
        ),
        (
            DeadFilter {
                reason: Some("first".into()),
                ..all.clone()
            },
            vec![0, 5],
        ),
        (
            DeadFilter {
                batch: Some(submitted[2].id),
                ..all.clone()
            },
            vec![2],
        ),
        (
            DeadFilter {
                batch: Some(alive[0].id),
                ..all.clone()
            },
            vec![],
        ),
        (
            DeadFilter {
                before: Some(after(3)),
                ..all.clone()
            },
            vec![0, 1, 2],
        ),
        (
            DeadFilter {
                before: Some(after(2)),
                key: Some(key("a")),
                reason: Some("other".into()),
                ..of_run(run)
            },
            vec![1],
        ),
    ];
    let known = [submitted.clone(), others].concat();
    for (filter, expected) in filters {
        let mut newest_first: Vec<BatchId> = expected.iter().map(|n| known[*n].id).collect();
        newest_first.reverse();
        let dead = ledger.dead(&filter, 10).await.unwrap();
        let found: Vec<_> = dead.iter().map(|dead| dead.batch).collect();
        assert_eq!(found, newest_first, "{filter:?}");
        let count = ledger.count_dead(&filter).await.unwrap();
        assert_eq!(count, expected.len() as u64, "{filter:?}");
    }
    assert_eq!(ledger.dead(&all, 2).await.unwrap().len(), 2);
    let dead = ledger
        .dead(
            &DeadFilter {
                batch: Some(submitted[2].id),
                ..all
            },
            1,
        )
        .await
        .unwrap();
    assert_eq!((dead[0].died_at, &dead[0].key), (after(2), &key("a")));
}

pub(super) async fn redriven_batches_start_over_in_time(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = [batches("a", 3), batches("b", 2)].concat();
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted[..1], 1).await;
    settle(&ledger, &submitted[0], 1, retry(9)).await;
    ledger
        .suspected(submitted[0].id, Attempt::new(2), 2, Some(&super::worker()))
        .await
        .unwrap();
    bury(&ledger, &submitted[..1], 2, NOW).await;
    bury(&ledger, &submitted[1..], 1, after(1)).await;
    assert_eq!(view(&ledger, run).await.state, RunState::Completed);

    let spacing = Duration::from_millis(500);
    let redriven = ledger
        .redrive(&of_run(run), 2, after(60), spacing)
        .await
        .unwrap();
    assert_eq!(redriven.batches, 2);
    assert_eq!(redriven.backlogs.len(), 1, "both are of one key");
    assert_eq!(
        (&redriven.backlogs[0].id.key, redriven.backlogs[0].due),
        (&key("a"), after(60))
    );
    let shown = view(&ledger, run).await;
    assert_eq!((shown.batches.dead, shown.batches.pending), (3, 2));
    assert_eq!((shown.state, shown.finished_at), (RunState::Running, None));
    let batch = detail(&ledger, &submitted[0]).await;
    assert_eq!((batch.state, batch.since), (BatchState::Pending, after(60)));
    assert_eq!((batch.attempts, batch.failures), (2, 0));
    assert_eq!((batch.reason, batch.error), (None, None));
    assert_eq!(
        detail(&ledger, &submitted[1]).await.since,
        after(60) + spacing
    );
    let suspect = ledger.suspect(submitted[0].id).await.unwrap().unwrap();
    assert_eq!((suspect.deaths, suspect.alone_on), (0, None));

    // The oldest is taken first, each backlog is told once.
    let redriven = ledger
        .redrive(&everything(), 10, after(70), spacing)
        .await
        .unwrap();
    let mut told: Vec<_> = redriven
        .backlogs
        .iter()
        .map(|b| (b.id.key.clone(), b.due))
        .collect();
    told.sort();
    assert_eq!(
        told,
        [(key("a"), after(70)), (key("b"), after(70) + spacing)]
    );
    assert_eq!(redriven.batches, 3);
    let mut backlogs = ledger.backlogs(Some(run)).await.unwrap();
    backlogs.sort_by_key(|backlog| backlog.id.key.clone());
    assert_eq!(
        (backlogs[0].due, backlogs[1].due),
        (after(60), after(70) + spacing)
    );
    let nothing = ledger
        .redrive(&everything(), 10, NOW, spacing)
        .await
        .unwrap();
    assert_eq!(nothing, Redriven::default());

    // Outcomes of the attempts before stay what they were, the next attempt counts.
    assert_eq!(
        settle(&ledger, &submitted[0], 1, retry(9)).await.effect,
        Effect::Stale
    );
    send_out(&ledger, &submitted[..1], 3).await;
    assert_eq!(
        settle(&ledger, &submitted[0], 3, complete(1)).await.effect,
        Effect::Completed
    );
    assert_eq!(view(&ledger, run).await.batches.completed, 1);
}

pub(super) async fn cancelled_runs_are_not_redriven(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 2);
    let run = submit(&ledger, &submitted).await;
    bury(&ledger, &submitted[..1], 1, NOW).await;
    ledger.cancel(run, NOW).await.unwrap();
    let others = batches("a", 2);
    let paused = submit(&ledger, &others).await;
    bury(&ledger, &others[..1], 1, after(1)).await;
    ledger.pause(paused, true).await.unwrap();

    // One is wanted: the older one does not stand in the way of the newer one.
    let redriven = ledger
        .redrive(&everything(), 1, NOW, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!((redriven.batches, redriven.backlogs), (1, vec![]));
    let shown = view(&ledger, paused).await;
    assert_eq!((shown.state, shown.batches.pending), (RunState::Paused, 2));
    assert_eq!(view(&ledger, run).await.batches.dead, 1);
    let none = ledger
        .redrive(&of_run(run), 1, NOW, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(none, Redriven::default());
}

pub(super) async fn discarded_batches_are_cancelled(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 3);
    let run = submit(&ledger, &submitted).await;
    bury(&ledger, &submitted, 1, NOW).await;
    assert_eq!(ledger.discard(&of_run(run), 2, after(9)).await.unwrap(), 2);
    let shown = view(&ledger, run).await;
    assert_eq!((shown.batches.dead, shown.batches.cancelled), (1, 2));
    assert_eq!(
        (shown.state, shown.finished_at),
        (RunState::Completed, Some(after(2)))
    );
    let batch = detail(&ledger, &submitted[0]).await;
    assert_eq!(
        (batch.state, batch.since),
        (BatchState::Cancelled, after(9))
    );
    assert_eq!(
        (batch.reason.as_deref(), batch.error.as_deref()),
        (Some("discarded"), Some("no"))
    );
    assert_eq!(ledger.discard(&of_run(run), 10, after(9)).await.unwrap(), 1);
    assert_eq!(
        ledger.discard(&everything(), 10, after(9)).await.unwrap(),
        0
    );
    let nothing = ledger
        .redrive(&everything(), 10, NOW, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(nothing.batches, 0);
    assert_eq!(view(&ledger, run).await.batches.cancelled, 3);
}

pub(super) async fn a_long_reason_is_cut(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    let run = submit(&ledger, &submitted).await;
    // Nothing that could be compressed.
    let letters = std::iter::repeat_with(|| rand::random_range('a'..='z'));
    let long: String = letters.take(4_096).collect();
    let settled = settle(&ledger, &submitted[0], 1, kill(&long)).await;
    assert_eq!(settled.effect, Effect::Dead);
    let filter = DeadFilter {
        reason: Some(long.clone()),
        ..of_run(run)
    };
    let dead = ledger.dead(&filter, 10).await.unwrap();
    assert_eq!(dead[0].reason, long[..255]);
}
