//! What every ledger must do, whatever database is behind it. Each backend runs this suite on itself.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::backoff::Backoff;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};
use shared::outcome::{FollowUp, Statistics};

use super::transition::RetryPolicy;
use super::{
    BacklogId, DeadFilter, DispatchLedger, Effect, Judged, Ledger, LedgerError, LedgerViews,
    NewBatch, NewRun, Opened, PendingBatch, Settled, SettlementLedger, SubmissionLedger, Verdict,
};
use crate::run::{Priority, Run, RunState};

/// Fresh storage that can be opened again and again.
pub(super) trait Backend {
    type Ledger: Ledger;
    async fn open(&self) -> Self::Ledger;
}

/// Runs every check on storage of its own.
pub(super) async fn run<B: Backend>(fresh: impl Fn() -> B) {
    a_run_exists_only_once_it_is_accepted(&fresh()).await;
    an_idempotency_key_gives_the_same_run(&fresh()).await;
    what_a_crash_left_half_submitted_is_gone(&fresh()).await;
    pages_come_in_order_of_due_time(&fresh()).await;
    payloads_come_back_as_they_were(&fresh()).await;
    batches_go_out_and_are_settled(&fresh()).await;
    an_outcome_may_overtake_its_recording(&fresh()).await;
    follow_ups_exist_exactly_once(&fresh()).await;
    failures_wait_and_end_dead(&fresh()).await;
    a_late_completion_wins(&fresh()).await;
    strangers_are_unknown(&fresh()).await;
    a_large_group_is_one_group(&fresh()).await;
}

const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);

fn pipeline() -> PipelineName {
    PipelineName::new("hashes").unwrap()
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn new_run() -> NewRun {
    NewRun {
        id: RunId::generate(),
        pipeline: pipeline(),
        priority: Priority::Normal,
        idempotency_key: None,
        webhook: None,
        created_at: NOW,
    }
}

fn batches(name: &str, count: usize) -> Vec<NewBatch> {
    let batch = |n: usize| NewBatch {
        id: BatchId::generate(),
        pipeline: pipeline(),
        key: key(name),
        payload: RawValue::from_string(format!("[{n}]")).unwrap(),
        due: NOW,
    };
    (0..count).map(batch).collect()
}

async fn submit(ledger: &impl Ledger, batches: &[NewBatch]) -> RunId {
    let run = new_run();
    assert_eq!(ledger.open_run(&run).await.unwrap(), Opened::New);
    ledger.append(run.id, batches).await.unwrap();
    ledger.accept(run.id, &[7; 32]).await.unwrap();
    run.id
}

async fn view(ledger: &impl Ledger, run: RunId) -> Run {
    let run = ledger.run(run).await.unwrap().expect("an accepted run");
    let b = run.batches;
    assert_eq!(
        b.accepted,
        b.pending + b.out + b.finished(),
        "conservation: {b:?}"
    );
    run
}

async fn send_out(ledger: &impl Ledger, batches: &[NewBatch], attempt: u32) {
    let dispatched: Vec<_> = batches
        .iter()
        .map(|b| (b.id, Attempt::new(attempt)))
        .collect();
    ledger.record_out(&dispatched, NOW).await.unwrap();
}

fn judged(batch: &NewBatch, attempt: u32, verdict: Verdict) -> Judged {
    Judged {
        batch: batch.id,
        attempt: Attempt::new(attempt),
        worker: None,
        took: None,
        verdict,
    }
}

fn complete(rows: u64) -> Verdict {
    Verdict::Complete {
        rows,
        statistics: Statistics::from([("api_calls".to_owned(), 2)]),
        follow_ups: vec![],
    }
}

fn retry(max_attempts: u32) -> Verdict {
    let backoff = Backoff::new(Duration::from_secs(10), Duration::from_mins(1));
    Verdict::Retry {
        error: "it's \"broken\"\n\u{1F4A5}".into(),
        after: None,
        policy: RetryPolicy {
            max_attempts,
            backoff,
        },
        random: 1.0,
    }
}

fn kill(reason: &str) -> Verdict {
    Verdict::Kill {
        reason: reason.into(),
        error: "no".into(),
    }
}

fn effects(settled: &[Settled]) -> Vec<Effect> {
    settled.iter().map(|s| s.effect).collect()
}

async fn a_run_exists_only_once_it_is_accepted(backend: &impl Backend) {
    let ledger = backend.open().await;
    let run = new_run();
    ledger.open_run(&run).await.unwrap();
    ledger.append(run.id, &batches("a", 3)).await.unwrap();
    assert_eq!(ledger.run(run.id).await.unwrap(), None);
    assert_eq!(ledger.runs(None, 10).await.unwrap(), []);
    assert_eq!(ledger.backlogs(None).await.unwrap(), []);
    assert_eq!(ledger.backlog().await.unwrap(), 0);

    let accepted = ledger.accept(run.id, &[7; 32]).await.unwrap();
    assert_eq!(accepted, view(&ledger, run.id).await);
    assert_eq!(
        (accepted.batches.accepted, accepted.batches.pending),
        (3, 3)
    );
    assert_eq!(accepted.state, RunState::Running);
    assert_eq!(ledger.backlog().await.unwrap(), 3);
    assert_eq!(ledger.backlogs(Some(run.id)).await.unwrap().len(), 1);
    let again = ledger.accept(run.id, &[7; 32]).await.unwrap();
    assert_eq!(again, accepted, "the answer may have been lost");
    let other = ledger.accept(run.id, &[8; 32]).await;
    assert!(matches!(other, Err(LedgerError::NotSubmitting(_))));
    let more = ledger.append(run.id, &batches("a", 1)).await;
    assert!(matches!(more, Err(LedgerError::NotSubmitting(_))));
    assert_eq!(view(&ledger, run.id).await.batches.accepted, 3);

    ledger.abandon(run.id).await.unwrap();
    assert_eq!(
        view(&ledger, run.id).await.batches.accepted,
        3,
        "too late to abandon"
    );
    assert_eq!(ledger.backlogs(Some(run.id)).await.unwrap().len(), 1);

    let refused = new_run();
    ledger.open_run(&refused).await.unwrap();
    ledger.append(refused.id, &batches("a", 700)).await.unwrap();
    ledger.abandon(refused.id).await.unwrap();
    assert_eq!(ledger.run(refused.id).await.unwrap(), None);
    assert_eq!(ledger.backlog().await.unwrap(), 3);
}

async fn an_idempotency_key_gives_the_same_run(backend: &impl Backend) {
    let ledger = backend.open().await;
    let first = NewRun {
        idempotency_key: Some("nightly".into()),
        ..new_run()
    };
    assert_eq!(ledger.open_run(&first).await.unwrap(), Opened::New);
    let second = NewRun {
        idempotency_key: Some("nightly".into()),
        ..new_run()
    };
    match ledger.open_run(&second).await.unwrap() {
        Opened::Known { run, digest } => assert_eq!((run.run, digest), (first.id, vec![])),
        Opened::New => panic!("the key is taken while its submission is under way"),
    }
    ledger.append(first.id, &batches("a", 1)).await.unwrap();
    let accepted = ledger.accept(first.id, &[9; 32]).await.unwrap();
    let known = Opened::Known {
        run: Box::new(accepted),
        digest: vec![9; 32],
    };
    assert_eq!(ledger.open_run(&second).await.unwrap(), known);
    // Runs without a key never meet.
    assert_eq!(ledger.open_run(&new_run()).await.unwrap(), Opened::New);
    assert_eq!(ledger.open_run(&new_run()).await.unwrap(), Opened::New);
}

async fn what_a_crash_left_half_submitted_is_gone(backend: &impl Backend) {
    let ledger = backend.open().await;
    let kept = submit(&ledger, &batches("a", 2)).await;
    let cut_off = NewRun {
        idempotency_key: Some("k".into()),
        ..new_run()
    };
    ledger.open_run(&cut_off).await.unwrap();
    ledger.append(cut_off.id, &batches("a", 2)).await.unwrap();
    drop(ledger);

    let ledger = backend.open().await;
    assert_eq!(view(&ledger, kept).await.batches.pending, 2);
    assert_eq!(ledger.run(cut_off.id).await.unwrap(), None);
    assert_eq!(
        ledger
            .open_run(&NewRun {
                id: RunId::generate(),
                ..cut_off
            })
            .await
            .unwrap(),
        Opened::New
    );
}

async fn pages_come_in_order_of_due_time(backend: &impl Backend) {
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

    let ids = |page: &super::Page| page.batches.iter().map(|b| b.id).collect::<Vec<_>>();
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

async fn payloads_come_back_as_they_were(backend: &impl Backend) {
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

async fn batches_go_out_and_are_settled(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 4);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted[..3], 1).await;
    assert_eq!(
        (
            view(&ledger, run).await.batches.pending,
            view(&ledger, run).await.batches.out
        ),
        (1, 3)
    );
    let outs = ledger.outs().await.unwrap();
    assert_eq!(outs.len(), 3);
    // Recording twice (publish, crash, publish again) changes nothing.
    send_out(&ledger, &submitted[..3], 1).await;
    assert_eq!(view(&ledger, run).await.batches.out, 3);

    let group = [
        judged(&submitted[0], 1, complete(5)),
        judged(&submitted[1], 1, kill("bad_payload")),
        judged(&submitted[0], 1, complete(5)),
        judged(
            &submitted[2],
            1,
            Verdict::Hold {
                reason: "quota".into(),
                after: Duration::from_secs(30),
            },
        ),
    ];
    let settled = ledger.settle(&group, NOW).await.unwrap();
    assert_eq!(
        effects(&settled),
        [
            Effect::Completed,
            Effect::Dead,
            Effect::Duplicate,
            Effect::Again
        ]
    );
    assert_eq!(settled[3].backlogs[0].due, NOW + Duration::from_secs(30));
    assert!(settled[0].backlogs.is_empty());

    let shown = view(&ledger, run).await;
    assert_eq!((shown.batches.completed, shown.batches.dead), (1, 1));
    assert_eq!((shown.batches.pending, shown.batches.out), (2, 0));
    assert_eq!((shown.rows, shown.retries), (5, 0));
    assert_eq!(
        shown.statistics,
        Statistics::from([("api_calls".to_owned(), 2)])
    );
    assert_eq!(ledger.outs().await.unwrap(), []);

    // The held one burnt no attempt, but its next dispatch has a number of its own.
    send_out(&ledger, &submitted[2..4], 1).await;
    assert_eq!(
        view(&ledger, run).await.batches.out,
        1,
        "attempt 1 of the held batch is over"
    );
    send_out(&ledger, &submitted[2..3], 2).await;
    let rest = [
        judged(&submitted[2], 1, complete(1)),
        judged(&submitted[2], 2, complete(1)),
        judged(&submitted[3], 1, complete(1)),
    ];
    let settled = ledger
        .settle(&rest, NOW + Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(
        effects(&settled),
        [Effect::Stale, Effect::Completed, Effect::Completed]
    );
    let shown = view(&ledger, run).await;
    assert_eq!(shown.state, RunState::Completed);
    assert_eq!(shown.finished_at, Some(NOW + Duration::from_secs(5)));
    assert_eq!((shown.rows, shown.statistics["api_calls"]), (7, 6));
    assert_eq!(
        ledger.runs(Some(RunState::Completed), 10).await.unwrap(),
        [shown]
    );
    assert_eq!(ledger.runs(Some(RunState::Running), 10).await.unwrap(), []);
}

async fn an_outcome_may_overtake_its_recording(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    let run = submit(&ledger, &submitted).await;
    let settled = ledger
        .settle(&[judged(&submitted[0], 1, complete(1))], NOW)
        .await
        .unwrap();
    assert_eq!(effects(&settled), [Effect::Completed]);
    send_out(&ledger, &submitted, 1).await;
    let shown = view(&ledger, run).await;
    assert_eq!(
        (shown.batches.completed, shown.batches.out, shown.state),
        (1, 0, RunState::Completed)
    );
}

async fn follow_ups_exist_exactly_once(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    let follow_up = |n: usize| FollowUp {
        pipeline: PipelineName::new("second.stage").unwrap(),
        key: key(if n < 1_200 { "a" } else { "b" }),
        payload: RawValue::from_string(format!("{{\"n\":{n}}}")).unwrap(),
    };
    let verdict = Verdict::Complete {
        rows: 0,
        statistics: Statistics::new(),
        follow_ups: (0..1_201).map(follow_up).collect(),
    };
    let group = [
        judged(&submitted[0], 1, verdict.clone()),
        judged(&submitted[0], 1, verdict.clone()),
    ];
    let settled = ledger.settle(&group, NOW).await.unwrap();
    assert_eq!(effects(&settled), [Effect::Completed, Effect::Duplicate]);
    let keys: Vec<_> = settled[0]
        .backlogs
        .iter()
        .map(|b| b.id.key.to_string())
        .collect();
    assert_eq!(keys, ["a", "b"]);
    ledger.settle(&group, NOW).await.unwrap();

    let shown = view(&ledger, run).await;
    assert_eq!(shown.state, RunState::Running, "its follow-ups are pending");
    assert_eq!(
        (shown.batches.accepted, shown.batches.pending),
        (1_202, 1_201)
    );
    let page = ledger
        .read_pending(&settled[0].backlogs[1].id, NOW, 10)
        .await
        .unwrap();
    assert_eq!(page.batches.len(), 1);
    let payload = ledger.payloads(&[&page.batches[0]]).await.unwrap();
    assert_eq!(payload[0].as_ref().unwrap().get(), "{\"n\":1200}");
}

async fn failures_wait_and_end_dead(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 2);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    let settled = ledger
        .settle(&[judged(&submitted[0], 1, retry(2))], NOW)
        .await
        .unwrap();
    assert_eq!(effects(&settled), [Effect::Again]);
    let due = settled[0].backlogs[0].due;
    assert_eq!(due, NOW + Duration::from_secs(10));
    let id = &settled[0].backlogs[0].id;
    assert_eq!(
        ledger
            .read_pending(id, NOW, 10)
            .await
            .unwrap()
            .batches
            .len(),
        0
    );
    assert_eq!(
        ledger.read_pending(id, NOW, 10).await.unwrap().more_due,
        Some(due)
    );
    let page = ledger.read_pending(id, due, 10).await.unwrap();
    assert_eq!(page.batches[0].attempt, Attempt::new(1));

    send_out(&ledger, &submitted[..1], 2).await;
    let settled = ledger
        .settle(&[judged(&submitted[0], 2, retry(2))], NOW)
        .await
        .unwrap();
    assert_eq!(effects(&settled), [Effect::Dead]);
    assert_eq!(view(&ledger, run).await.retries, 1);

    let dead = ledger.dead(&DeadFilter::default(), 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(
        (dead[0].batch, dead[0].run, dead[0].attempts),
        (submitted[0].id, run, 2)
    );
    assert_eq!(dead[0].reason, "attempts_exhausted");
    assert_eq!(dead[0].error, "it's \"broken\"\n\u{1F4A5}");
    let of_run = DeadFilter {
        run: Some(run),
        pipeline: Some(pipeline()),
        ..DeadFilter::default()
    };
    assert_eq!(ledger.dead(&of_run, 10).await.unwrap(), dead);
    let of_other = DeadFilter {
        run: Some(RunId::generate()),
        pipeline: None,
        ..DeadFilter::default()
    };
    assert_eq!(ledger.dead(&of_other, 10).await.unwrap(), []);
}

async fn a_late_completion_wins(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    ledger
        .settle(&[judged(&submitted[0], 1, kill("failed"))], NOW)
        .await
        .unwrap();
    assert_eq!(view(&ledger, run).await.state, RunState::Completed);
    let settled = ledger
        .settle(&[judged(&submitted[0], 1, complete(3))], NOW)
        .await
        .unwrap();
    assert_eq!(effects(&settled), [Effect::CompletedLate]);
    let shown = view(&ledger, run).await;
    assert_eq!(
        (shown.batches.completed, shown.batches.dead, shown.rows),
        (1, 0, 3)
    );
    assert_eq!(ledger.dead(&DeadFilter::default(), 10).await.unwrap(), []);
    assert_eq!(shown.state, RunState::Completed);

    // What it asks for still has to be done.
    let submitted = batches("a", 1);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    ledger
        .settle(&[judged(&submitted[0], 1, kill("failed"))], NOW)
        .await
        .unwrap();
    let follow_up = FollowUp {
        pipeline: pipeline(),
        key: key("a"),
        payload: RawValue::from_string("1".into()).unwrap(),
    };
    let late = Verdict::Complete {
        rows: 0,
        statistics: Statistics::new(),
        follow_ups: vec![follow_up],
    };
    ledger
        .settle(&[judged(&submitted[0], 1, late)], NOW)
        .await
        .unwrap();
    let shown = view(&ledger, run).await;
    assert_eq!((shown.state, shown.finished_at), (RunState::Running, None));
    assert_eq!(ledger.backlogs(Some(run)).await.unwrap().len(), 1);
}

async fn strangers_are_unknown(backend: &impl Backend) {
    let ledger = backend.open().await;
    let stranger = batches("a", 1);
    let settled = ledger
        .settle(&[judged(&stranger[0], 1, complete(1))], NOW)
        .await
        .unwrap();
    assert_eq!(effects(&settled), [Effect::Unknown]);
    send_out(&ledger, &stranger, 1).await;
    assert_eq!(ledger.outs().await.unwrap(), []);
    assert_eq!(ledger.settle(&[], NOW).await.unwrap(), []);
    assert_eq!(ledger.run(RunId::generate()).await.unwrap(), None);
}

async fn a_large_group_is_one_group(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 2_500);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    assert_eq!(view(&ledger, run).await.batches.out, 2_500);
    let group: Vec<_> = submitted
        .iter()
        .map(|b| judged(b, 1, complete(1)))
        .collect();
    let settled = ledger.settle(&group, NOW).await.unwrap();
    assert!(settled.iter().all(|s| s.effect == Effect::Completed));
    let shown = view(&ledger, run).await;
    assert_eq!(
        (shown.batches.completed, shown.rows, shown.state),
        (2_500, 2_500, RunState::Completed)
    );
}
