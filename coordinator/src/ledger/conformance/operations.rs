//! What operators do to runs and pipelines.

use std::collections::BTreeSet;

use shared::id::RunId;
use shared::name::{Attempt, PipelineName};

use super::{
    Backend, NOW, after, asks_for, batches, complete, detail, hold, kill, new_run, retry, send_out,
    settle, submit, view,
};
use crate::ledger::{
    BacklogId, DispatchLedger, Effect, Ledger, LedgerViews, OperationsLedger, PendingBatch,
    SettlementLedger, SubmissionLedger,
};
use crate::run::{BatchState, Priority, RunState};

/// Dispatch reads nothing of this run.
async fn assert_nothing_goes_out(ledger: &impl Ledger, id: &BacklogId, waiting: &PendingBatch) {
    assert_eq!(ledger.backlogs(Some(id.run)).await.unwrap(), []);
    assert_eq!(ledger.backlogs(None).await.unwrap(), []);
    let page = ledger.read_pending(id, after(3_600), 10).await.unwrap();
    assert_eq!((page.batches, page.more_due), (vec![], None));
    assert!(ledger.payloads(&[waiting]).await.unwrap()[0].is_none());
}

/// The one backlog of a run, and its first batch.
async fn head(ledger: &impl Ledger, run: RunId) -> (BacklogId, PendingBatch) {
    let backlogs = ledger.backlogs(Some(run)).await.unwrap();
    let id = backlogs[0].id.clone();
    let mut page = ledger.read_pending(&id, after(3_600), 1).await.unwrap();
    (id, page.batches.remove(0))
}

pub(super) async fn a_cancelled_run_ends_chunk_by_chunk(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 10);
    let run = submit(&ledger, &submitted).await;
    let bystander = submit(&ledger, &batches("b", 3)).await;
    send_out(&ledger, &submitted[..1], 1).await;
    settle(&ledger, &submitted[0], 1, asks_for(&["a", "b"])).await;
    let (id, waiting) = head(&ledger, run).await;
    assert_eq!(
        ledger.cancel_pending(run, 5, NOW).await.unwrap(),
        0,
        "not yet"
    );
    ledger.cancel(bystander, NOW).await.unwrap();
    while ledger.cancel_pending(bystander, 2, NOW).await.unwrap() > 0 {}
    assert_eq!(view(&ledger, bystander).await.batches.cancelled, 3);

    let cancelled = ledger.cancel(run, after(1)).await.unwrap().unwrap();
    assert_eq!(cancelled, view(&ledger, run).await);
    assert_eq!(cancelled.state, RunState::Cancelled);
    assert_eq!(
        (cancelled.batches.pending, cancelled.finished_at),
        (11, None)
    );
    assert_eq!(ledger.cancelling().await.unwrap(), [run]);
    assert_nothing_goes_out(&ledger, &id, &waiting).await;

    // Another process goes on with it.
    drop(ledger);
    let ledger = backend.open().await;
    assert_eq!(ledger.cancelling().await.unwrap(), [run]);
    assert_eq!(ledger.cancel_pending(run, 6, after(2)).await.unwrap(), 6);
    assert_eq!(view(&ledger, run).await.batches.cancelled, 6);
    assert_eq!(ledger.cancel_pending(run, 6, after(3)).await.unwrap(), 5);
    assert_eq!(ledger.cancel_pending(run, 6, after(4)).await.unwrap(), 0);
    let shown = view(&ledger, run).await;
    assert_eq!((shown.batches.cancelled, shown.batches.completed), (11, 1));
    assert_eq!(shown.state, RunState::Cancelled);
    assert_eq!(shown.finished_at, Some(after(3)));
    assert_eq!(ledger.cancelling().await.unwrap(), Vec::<RunId>::new());
    let batch = detail(&ledger, &submitted[5]).await;
    assert_eq!((batch.state, batch.attempts), (BatchState::Cancelled, 0));

    // Saying it again changes nothing.
    assert_eq!(ledger.cancel(run, after(9)).await.unwrap(), Some(shown));
    assert_eq!(ledger.cancel(RunId::generate(), NOW).await.unwrap(), None);
    let unfinished = new_run();
    ledger.open_run(&unfinished).await.unwrap();
    assert_eq!(ledger.cancel(unfinished.id, NOW).await.unwrap(), None);
    ledger
        .append(unfinished.id, &batches("a", 1))
        .await
        .unwrap();
    ledger.accept(unfinished.id, &[7; 32]).await.unwrap();
    assert_eq!(view(&ledger, unfinished.id).await.state, RunState::Running);
}

pub(super) async fn what_is_out_when_its_run_is_cancelled_ends_by_its_outcome(
    backend: &impl Backend,
) {
    let ledger = backend.open().await;
    let submitted = batches("a", 8);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted[..5], 1).await;
    ledger.cancel(run, NOW).await.unwrap();
    // Published before, recorded after: it is out like the others.
    send_out(&ledger, &submitted[5..6], 1).await;
    assert_eq!(view(&ledger, run).await.batches.out, 6);
    ledger.cancel_pending(run, 100, NOW).await.unwrap();
    assert_eq!(ledger.cancelling().await.unwrap(), [run], "six are out");
    // Published, and cancelled before it was recorded: it stays cancelled until its outcome says more.
    send_out(&ledger, &submitted[6..7], 1).await;
    assert_eq!(view(&ledger, run).await.batches.cancelled, 2);

    let ends = [
        (0, complete(1), Effect::Completed),
        (1, retry(9), Effect::Cancelled),
        (2, hold(), Effect::Cancelled),
        (3, kill("failed"), Effect::Dead),
        (4, asks_for(&["a", "b"]), Effect::Completed),
        (6, complete(1), Effect::CompletedLate),
        (7, retry(9), Effect::Duplicate),
    ];
    for (n, verdict, effect) in ends {
        let settled = settle(&ledger, &submitted[n], 1, verdict).await;
        assert_eq!((settled.effect, settled.backlogs), (effect, vec![]), "{n}");
        assert_eq!(view(&ledger, run).await.state, RunState::Cancelled);
    }
    assert_eq!(view(&ledger, run).await.finished_at, None);
    let last = [super::judged(&submitted[5], 1, complete(1))];
    ledger.settle(&last, after(7)).await.unwrap();
    let shown = view(&ledger, run).await;
    assert_eq!(
        (shown.state, shown.finished_at),
        (RunState::Cancelled, Some(after(7)))
    );
    let b = shown.batches;
    assert_eq!(
        (b.accepted, b.completed, b.dead, b.cancelled),
        (10, 4, 1, 5)
    );
    assert_eq!(ledger.cancelling().await.unwrap(), Vec::<RunId>::new());

    // What comes later still changes neither state nor end of the run.
    let settled = settle(&ledger, &submitted[3], 1, asks_for(&["a"])).await;
    assert_eq!(settled.effect, Effect::CompletedLate);
    let shown = view(&ledger, run).await;
    assert_eq!(
        (shown.state, shown.finished_at),
        (RunState::Cancelled, Some(after(7)))
    );
    assert_eq!((shown.batches.accepted, shown.batches.cancelled), (11, 6));
    assert_eq!(ledger.backlogs(None).await.unwrap(), []);
}

pub(super) async fn a_paused_run_waits_and_goes_on(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 4);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted[..2], 1).await;
    let (id, waiting) = head(&ledger, run).await;
    assert_eq!(ledger.waiting(&super::pipeline(), 9).await.unwrap(), 2);
    assert_eq!(ledger.waiting(&super::pipeline(), 1).await.unwrap(), 1);
    let paused = ledger.pause(run, true).await.unwrap().unwrap();
    assert_eq!(
        (paused.state, paused.batches.pending),
        (RunState::Paused, 2)
    );
    assert_nothing_goes_out(&ledger, &id, &waiting).await;
    assert_eq!(ledger.waiting(&super::pipeline(), 9).await.unwrap(), 0);
    assert_eq!(
        ledger.runs(Some(RunState::Paused), None, 10).await.unwrap(),
        [paused]
    );

    // What is out, or was published and not recorded, goes its way.
    send_out(&ledger, &submitted[2..3], 1).await;
    assert_eq!(view(&ledger, run).await.batches.out, 3);
    let settled = settle(&ledger, &submitted[0], 1, retry(9)).await;
    assert_eq!((settled.effect, settled.backlogs), (Effect::Again, vec![]));
    let settled = settle(&ledger, &submitted[1], 1, asks_for(&["b"])).await;
    assert_eq!(
        (settled.effect, settled.backlogs),
        (Effect::Completed, vec![])
    );
    let shown = view(&ledger, run).await;
    assert_eq!((shown.state, shown.batches.pending), (RunState::Paused, 3));
    ledger.pause(run, true).await.unwrap();

    let resumed = ledger.pause(run, false).await.unwrap().unwrap();
    assert_eq!(resumed.state, RunState::Running);
    let backlogs = ledger.backlogs(Some(run)).await.unwrap();
    assert_eq!(backlogs.len(), 2);
    assert!(
        ledger
            .payloads(&[&head(&ledger, run).await.1])
            .await
            .unwrap()[0]
            .is_some()
    );

    // A paused run may finish, and a paused run may be cancelled.
    let submitted = batches("a", 1);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    ledger.pause(run, true).await.unwrap();
    settle(&ledger, &submitted[0], 1, complete(1)).await;
    assert_eq!(view(&ledger, run).await.state, RunState::Completed);
    let run = submit(&ledger, &batches("a", 1)).await;
    ledger.pause(run, true).await.unwrap();
    ledger.cancel(run, NOW).await.unwrap();
    assert_eq!(ledger.cancel_pending(run, 10, NOW).await.unwrap(), 1);
    assert_eq!(view(&ledger, run).await.state, RunState::Cancelled);
    assert_eq!(ledger.pause(RunId::generate(), true).await.unwrap(), None);
}

pub(super) async fn finished_runs_stay_as_they_are(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    settle(&ledger, &submitted[0], 1, complete(1)).await;
    let finished = view(&ledger, run).await;
    let same = Some(finished.clone());
    assert_eq!(ledger.cancel(run, after(1)).await.unwrap(), same);
    assert_eq!(ledger.cancel_pending(run, 10, after(1)).await.unwrap(), 0);
    assert_eq!(ledger.pause(run, true).await.unwrap(), same);
    assert_eq!(ledger.pause(run, false).await.unwrap(), same);
    assert_eq!(ledger.prioritize(run, Priority::High).await.unwrap(), same);
    assert_eq!(view(&ledger, run).await, finished);
}

pub(super) async fn priorities_change(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 2);
    let run = submit(&ledger, &submitted).await;
    let high = ledger
        .prioritize(run, Priority::High)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(high.priority, Priority::High);
    let backlogs = ledger.backlogs(Some(run)).await.unwrap();
    assert_eq!(backlogs[0].priority, Priority::High);
    send_out(&ledger, &submitted[..1], 1).await;
    let settled = settle(&ledger, &submitted[0], 1, retry(9)).await;
    assert_eq!(settled.backlogs[0].priority, Priority::High);
    ledger.pause(run, true).await.unwrap();
    let low = ledger
        .prioritize(run, Priority::Low)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((low.priority, low.state), (Priority::Low, RunState::Paused));
    let none = ledger.prioritize(RunId::generate(), Priority::Low).await;
    assert_eq!(none.unwrap(), None);
}

pub(super) async fn pipelines_are_paused(backend: &impl Backend) {
    let ledger = backend.open().await;
    assert_eq!(ledger.paused_pipelines().await.unwrap(), BTreeSet::new());
    let (used, unused) = (super::pipeline(), PipelineName::new("unused").unwrap());
    let submitted = batches("a", 2);
    let run = submit(&ledger, &submitted).await;
    for pipeline in [&used, &unused, &used] {
        ledger.pause_pipeline(pipeline, true).await.unwrap();
    }
    let both = BTreeSet::from([used.clone(), unused.clone()]);
    assert_eq!(ledger.paused_pipelines().await.unwrap(), both);
    drop(ledger);
    let ledger = backend.open().await;
    assert_eq!(ledger.paused_pipelines().await.unwrap(), both);
    // Pausing and counting do not get into each other's way.
    let dispatched = [(submitted[0].id, Attempt::new(1))];
    ledger.record_out(&dispatched, NOW).await.unwrap();
    assert_eq!(view(&ledger, run).await.batches.out, 1);
    assert_eq!(ledger.paused_pipelines().await.unwrap(), both);
    ledger.pause_pipeline(&used, false).await.unwrap();
    assert_eq!(
        ledger.paused_pipelines().await.unwrap(),
        BTreeSet::from([unused])
    );
    assert_eq!(view(&ledger, run).await.batches.pending, 1);
}
