//! What people look at.

use std::time::Duration;

use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance};

use super::{
    Backend, NOW, after, asks_for, batches, complete, detail, hold, judged, key, kill, new_run,
    pipeline, retry, send_out, settle, submit, view, worker,
};
use crate::ledger::{
    DeadFilter, DispatchLedger, LedgerViews, NewBatch, OperationsLedger, OperatorViews,
    SettlementLedger, SubmissionLedger,
};
use crate::run::{AttemptRecord, BatchState, RunState};

pub(super) async fn a_batch_tells_its_history(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    let run = submit(&ledger, &submitted).await;
    let batch = &submitted[0];
    let fresh = detail(&ledger, batch).await;
    assert_eq!(
        (fresh.batch, fresh.run, fresh.state),
        (batch.id, run, BatchState::Pending)
    );
    assert_eq!(
        (fresh.pipeline, fresh.key, fresh.since),
        (pipeline(), key("a"), NOW)
    );
    assert_eq!(
        (fresh.attempts, fresh.failures, fresh.history),
        (0, 0, vec![])
    );
    assert_eq!(fresh.payload.get(), "[0]");

    let out = async |attempt: u32, seconds| {
        let dispatched = [(batch.id, Attempt::new(attempt))];
        ledger
            .record_out(&dispatched, after(seconds))
            .await
            .unwrap();
    };
    let end = async |attempt, verdict, seconds| {
        let outcome = judged(batch, attempt, verdict);
        ledger.settle(&[outcome], after(seconds)).await.unwrap();
    };
    out(1, 1).await;
    end(1, retry(3), 2).await;
    // Its outcome comes before it is recorded; nobody in particular says so.
    let mut anonymous = judged(batch, 2, hold());
    (anonymous.worker, anonymous.took) = (None, None);
    ledger.settle(&[anonymous], after(3)).await.unwrap();
    let waiting = detail(&ledger, batch).await;
    assert_eq!(waiting.reason.as_deref(), Some("throttled"));
    assert_eq!(waiting.error.as_deref(), Some("quota"));
    assert_eq!((waiting.since, waiting.failures), (after(33), 1));
    out(3, 40).await;
    assert_eq!(detail(&ledger, batch).await.reason, None);
    end(3, kill("gone\0"), 41).await;
    ledger
        .redrive(&DeadFilter::default(), 1, after(50), Duration::ZERO)
        .await
        .unwrap();
    out(4, 51).await;
    end(4, complete(1), 52).await;
    end(4, complete(1), 53).await;

    let record = |attempt, verdict: &str, settled| AttemptRecord {
        attempt,
        worker: Some(worker()),
        out_at: None,
        settled_at: after(settled),
        took_ms: Some(1_500),
        verdict: verdict.into(),
        error: None,
    };
    let expected = vec![
        AttemptRecord {
            out_at: Some(after(1)),
            error: Some("it's \"broken\"\n\u{1F4A5}".into()),
            ..record(1, "retry", 2)
        },
        AttemptRecord {
            worker: None,
            took_ms: None,
            error: Some("quota".into()),
            ..record(2, "throttled", 3)
        },
        AttemptRecord {
            out_at: Some(after(40)),
            error: Some("no".into()),
            ..record(3, "gone\u{fffd}", 41)
        },
        AttemptRecord {
            out_at: Some(after(51)),
            ..record(4, "completed", 52)
        },
    ];
    let done = detail(&ledger, batch).await;
    assert_eq!(done.history, expected);
    assert_eq!(
        (done.state, done.since, done.attempts),
        (BatchState::Completed, after(52), 4)
    );
    assert_eq!((done.reason, done.error), (None, None));
    assert!(ledger.batch(BatchId::generate()).await.unwrap().is_none());
}

/// What was thought before is told, too.
pub(super) async fn a_late_completion_ends_the_history(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    submit(&ledger, &submitted).await;
    let late = &submitted[0];
    send_out(&ledger, &submitted, 1).await;
    settle(&ledger, late, 1, kill("failed")).await;
    let mut winner = judged(late, 1, complete(1));
    winner.worker = Some(Instance::from("worker-b".to_owned()));
    ledger.settle(&[winner], after(9)).await.unwrap();
    let history = detail(&ledger, late).await.history;
    let told: Vec<_> = history
        .iter()
        .map(|r| (r.attempt, r.verdict.as_str()))
        .collect();
    assert_eq!(told, [(1, "failed"), (1, "completed")]);
    assert_eq!(history[1].worker.as_ref().unwrap().as_str(), "worker-b");
    assert_eq!(history[1].settled_at, after(9));
}

pub(super) async fn long_histories_keep_their_end(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    submit(&ledger, &submitted).await;
    for attempt in 1..=60 {
        settle(&ledger, &submitted[0], attempt, hold()).await;
    }
    let history = detail(&ledger, &submitted[0]).await.history;
    let attempts: Vec<_> = history.iter().map(|record| record.attempt).collect();
    assert_eq!(attempts, (11..=60).collect::<Vec<_>>());
}

pub(super) async fn batches_are_listed_in_order(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 5);
    let run = submit(&ledger, &submitted).await;
    submit(&ledger, &batches("b", 2)).await;
    send_out(&ledger, &submitted[..4], 1).await;
    settle(&ledger, &submitted[0], 1, asks_for(&["x"])).await;
    settle(&ledger, &submitted[1], 1, complete(1)).await;
    settle(&ledger, &submitted[2], 1, kill("failed")).await;
    let list = async |state, after: Option<&NewBatch>, limit| {
        let after = after.map(|batch| batch.id);
        let batches = ledger.batches(run, state, after, limit).await.unwrap();
        batches.iter().map(|batch| batch.batch).collect::<Vec<_>>()
    };
    let ids: Vec<_> = submitted.iter().map(|batch| batch.id).collect();
    let all = list(None, None, 10).await;
    assert_eq!((&all[..5], all.len()), (&ids[..], 6));
    assert_eq!(list(None, None, 2).await, ids[..2]);
    assert_eq!(list(None, Some(&submitted[1]), 2).await, ids[2..4]);
    assert_eq!(list(Some(BatchState::Completed), None, 10).await, ids[..2]);
    assert_eq!(list(Some(BatchState::Dead), None, 10).await, ids[2..3]);
    assert_eq!(list(Some(BatchState::Out), None, 10).await, ids[3..4]);
    assert_eq!(
        list(Some(BatchState::Pending), None, 10).await,
        [ids[4], all[5]]
    );
    assert_eq!(
        list(Some(BatchState::Pending), Some(&submitted[4]), 10).await,
        all[5..]
    );
    assert_eq!(list(Some(BatchState::Cancelled), None, 10).await, []);
    let summaries = ledger
        .batches(run, Some(BatchState::Dead), None, 1)
        .await
        .unwrap();
    assert_eq!((summaries[0].attempts, summaries[0].since), (1, NOW));
    assert_eq!(
        (&summaries[0].key, &summaries[0].pipeline),
        (&key("a"), &pipeline())
    );
    assert_eq!(
        ledger
            .batches(RunId::generate(), None, None, 1)
            .await
            .unwrap(),
        []
    );
    let runs = ledger.runs(None, None, 1).await.unwrap();
    assert_eq!(runs.len(), 1);
    assert_ne!(runs[0].run, run, "the newest first");
    for state in [None, Some(RunState::Running)] {
        let older = ledger.runs(state, Some(runs[0].run), 10).await.unwrap();
        assert_eq!(older.len(), 1);
        assert_eq!(older[0].run, run);
        assert_eq!(ledger.runs(state, Some(run), 10).await.unwrap(), []);
    }
}

pub(super) async fn the_oldest_due_is_of_a_running_run(backend: &impl Backend) {
    let ledger = backend.open().await;
    assert_eq!(ledger.oldest_due(NOW).await.unwrap(), None);
    let mut submitted = batches("a", 3);
    for (batch, second) in submitted.iter_mut().zip([30, 10, 20]) {
        batch.due = after(second);
    }
    let run = submit(&ledger, &submitted).await;
    let mut old = batches("b", 1);
    old[0].due = after(5);
    let old_run = submit(&ledger, &old).await;
    let submitting = new_run();
    ledger.open_run(&submitting).await.unwrap();
    ledger
        .append(submitting.id, &batches("c", 1))
        .await
        .unwrap();

    assert_eq!(ledger.oldest_due(after(4)).await.unwrap(), None);
    assert_eq!(ledger.oldest_due(after(60)).await.unwrap(), Some(after(5)));
    ledger.pause(old_run, true).await.unwrap();
    assert_eq!(ledger.oldest_due(after(60)).await.unwrap(), Some(after(10)));
    send_out(&ledger, &submitted[1..2], 1).await;
    assert_eq!(ledger.oldest_due(after(60)).await.unwrap(), Some(after(20)));
    settle(&ledger, &submitted[1], 1, retry(9)).await;
    assert_eq!(ledger.oldest_due(after(15)).await.unwrap(), Some(after(10)));
    ledger.cancel(run, NOW).await.unwrap();
    assert_eq!(ledger.oldest_due(after(60)).await.unwrap(), None);
    assert_eq!(view(&ledger, run).await.batches.pending, 3);
}
