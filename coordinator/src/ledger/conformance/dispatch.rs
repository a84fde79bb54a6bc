//! What dispatch reads.

use std::time::Duration;

use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::{Attempt, PipelineName};

use super::{
    Backend, NOW, after, asks_for, batches, hold, key, kill, new_run, pipeline, send_out, settle,
    submit, submit_as,
};
use crate::ledger::{
    BacklogId, DispatchLedger, Effect, LedgerViews, NewRun, OperationsLedger, OperatorViews, Page,
    PendingBatch, ReconciliationLedger, SubmissionLedger,
};
use crate::run::Priority;

pub(super) async fn pages_come_in_order_of_due_time(backend: &impl Backend) {
    let ledger = backend.open().await;
    let mut submitted = batches("a", 5);
    submitted[0].due = NOW + Duration::from_mins(1);
    let other = batches("b", 1);
    let run = submit(&ledger, &[submitted.clone(), other].concat()).await;
    let id = BacklogId {
        run,
        pipeline: pipeline(),
        key: key("a"),
    };

    let ids = |page: &Page| page.batches.iter().map(|b| b.id).collect::<Vec<_>>();
    let page = ledger.read_pending(&id, NOW, 3).await.unwrap();
    assert_eq!(
        ids(&page),
        [submitted[1].id, submitted[2].id, submitted[3].id]
    );
    assert_eq!(page.more_due, Some(NOW));
    assert_eq!(
        (page.batches[0].attempt, page.batches[0].bytes),
        (Attempt::NONE, 3)
    );

    let page = ledger.read_pending(&id, NOW, 4).await.unwrap();
    assert_eq!(page.batches.len(), 4);
    assert_eq!(
        page.more_due,
        Some(submitted[0].due),
        "the one that is not due yet"
    );

    let page = ledger
        .read_pending(&id, submitted[0].due, 10)
        .await
        .unwrap();
    assert_eq!(page.batches.last().unwrap().id, submitted[0].id);
    assert_eq!(page.more_due, None);

    let mut backlogs = ledger.backlogs(None).await.unwrap();
    backlogs.sort_by_key(|backlog| backlog.id.key.to_string());
    assert_eq!(backlogs[0].id, id);
    assert_eq!(
        (backlogs[0].due, backlogs[0].priority),
        (NOW, Priority::Normal)
    );
    assert_eq!(backlogs.len(), 2);
}

pub(super) async fn payloads_come_back_as_they_were(backend: &impl Backend) {
    let ledger = backend.open().await;
    let mut submitted = batches("a", 3);
    let odd =
        r#"{"text":"tab\t \"quote\" \\ ä 💥 \u00e9","n":1e5,"big":123456789012345678901234567890}"#;
    submitted[1].payload = RawValue::from_string(odd.into()).unwrap();
    submit(&ledger, &submitted).await;
    let waiting = |id, attempt| PendingBatch {
        id,
        attempt: Attempt::new(attempt),
        bytes: 0,
    };
    let stranger = waiting(BatchId::generate(), 0);
    let (first, second, third) = (
        waiting(submitted[0].id, 0),
        waiting(submitted[1].id, 0),
        waiting(submitted[2].id, 0),
    );
    let later = waiting(submitted[2].id, 1);
    send_out(&ledger, &submitted[2..], 1).await;
    let payloads = ledger
        .payloads(&[&second, &stranger, &first, &third, &later])
        .await
        .unwrap();
    let texts: Vec<_> = payloads
        .iter()
        .map(|p| p.as_ref().map(|p| p.get()))
        .collect();
    assert_eq!(
        texts,
        [Some(odd), None, Some("[0]"), None, None],
        "only what still waits"
    );
    assert!(ledger.payloads(&[]).await.unwrap().is_empty());
}

pub(super) async fn every_backlog_is_found_once(backend: &impl Backend) {
    let ledger = backend.open().await;
    assert_eq!(ledger.backlogs(None).await.unwrap(), []);
    let names = ["a", "a'", "b", "ab", "ä", "z"];
    let submitted: Vec<_> = names.iter().flat_map(|name| batches(name, 3)).collect();
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted[..1], 1).await;
    settle(&ledger, &submitted[0], 1, asks_for(&["z", "a"])).await;
    let mut late = batches("late", 2);
    late[0].due = after(60);
    late[1].due = after(30);
    let high = NewRun {
        priority: Priority::High,
        ..new_run()
    };
    let high = submit_as(&ledger, high, &late).await;
    let submitting = new_run();
    ledger.open_run(&submitting).await.unwrap();
    ledger
        .append(submitting.id, &batches("hidden", 2))
        .await
        .unwrap();

    let second = PipelineName::new("second.stage").unwrap();
    let mut expected: Vec<_> = names
        .iter()
        .map(|name| (run, pipeline(), key(name), NOW, Priority::Normal))
        .collect();
    for name in ["a", "z"] {
        expected.push((run, second.clone(), key(name), NOW, Priority::Normal));
    }
    expected.sort();
    let read = async |run| {
        let backlogs = ledger.backlogs(run).await.unwrap();
        let mut found: Vec<_> = backlogs
            .into_iter()
            .map(|b| (b.id.run, b.id.pipeline, b.id.key, b.due, b.priority))
            .collect();
        found.sort();
        found
    };
    assert_eq!(read(Some(run)).await, expected);
    let first_due = (high, pipeline(), key("late"), after(30), Priority::High);
    assert_eq!(read(Some(high)).await, vec![first_due.clone()]);
    expected.push(first_due);
    expected.sort();
    assert_eq!(read(None).await, expected);
}

pub(super) async fn what_is_being_submitted_never_goes_out(backend: &impl Backend) {
    let ledger = backend.open().await;
    let (run, submitted) = (new_run(), batches("a", 1));
    ledger.open_run(&run).await.unwrap();
    ledger.append(run.id, &submitted).await.unwrap();
    let id = BacklogId {
        run: run.id,
        pipeline: pipeline(),
        key: key("a"),
    };
    let page = ledger.read_pending(&id, NOW, 10).await.unwrap();
    assert_eq!((page.batches, page.more_due), (vec![], None));
    send_out(&ledger, &submitted, 1).await;
    let settled = settle(&ledger, &submitted[0], 1, asks_for(&["a"])).await;
    assert_eq!(settled.effect, Effect::Unknown);
    assert!(ledger.batch(submitted[0].id).await.unwrap().is_none());
    assert_eq!(ledger.suspect(submitted[0].id).await.unwrap(), None);
    assert_eq!(ledger.oldest_due(NOW).await.unwrap(), None);
    assert_eq!(ledger.outs().await.unwrap(), []);

    let run = ledger.accept(run.id, &[7; 32]).await.unwrap();
    assert_eq!(run.batches.pending, 1);
    assert_eq!(ledger.run(run.run).await.unwrap(), Some(run));
}

pub(super) async fn what_waits_is_counted_as_far_as_it_matters(backend: &impl Backend) {
    let ledger = backend.open().await;
    let second = PipelineName::new("second.stage").unwrap();
    let waiting = async |pipeline: &PipelineName, enough| {
        let waiting = ledger.waiting(pipeline, enough).await;
        waiting.unwrap()
    };
    assert_eq!(waiting(&pipeline(), 10).await, 0);
    let mut submitted = batches("a", 5);
    submitted[4].due = after(3_600);
    let run = submit(&ledger, &submitted).await;
    let other = submit(&ledger, &batches("b", 2)).await;
    assert_eq!(waiting(&pipeline(), 100).await, 7, "what is due later, too");
    assert_eq!(waiting(&pipeline(), 7).await, 7);
    assert_eq!(waiting(&pipeline(), 3).await, 3, "more make no difference");
    assert_eq!(waiting(&pipeline(), u64::MAX).await, 7);

    // Out, completed and dead ones wait no more; one that goes out again does, and so do follow-ups.
    send_out(&ledger, &submitted[..3], 1).await;
    assert_eq!(waiting(&pipeline(), 100).await, 4);
    settle(&ledger, &submitted[0], 1, asks_for(&["a", "b"])).await;
    settle(&ledger, &submitted[1], 1, kill("failed")).await;
    settle(&ledger, &submitted[2], 1, hold()).await;
    let both = (waiting(&pipeline(), 100).await, waiting(&second, 100).await);
    assert_eq!(both, (5, 2));

    // Only running runs: what is held back by an operator must not hold back others.
    ledger.pause(run, true).await.unwrap();
    let both = (waiting(&pipeline(), 100).await, waiting(&second, 100).await);
    assert_eq!(both, (2, 0));
    ledger.pause(run, false).await.unwrap();
    ledger.cancel(other, NOW).await.unwrap();
    assert_eq!(waiting(&pipeline(), 100).await, 3);
    let submitting = new_run();
    ledger.open_run(&submitting).await.unwrap();
    let hidden = batches("c", 9);
    ledger.append(submitting.id, &hidden).await.unwrap();
    assert_eq!(waiting(&pipeline(), 100).await, 3);
}
