//! What outcomes do.

use std::time::Duration;

use serde_json::value::RawValue;
use shared::id::RunId;
use shared::name::{Attempt, PipelineName};
use shared::outcome::{FollowUp, Statistics};

use super::{
    Backend, NOW, after, batches, complete, detail, effects, judged, key, kill, pipeline, retry,
    send_out, settle, submit, view,
};
use crate::ledger::{DeadFilter, DispatchLedger, Effect, LedgerViews, SettlementLedger, Verdict};
use crate::run::RunState;

pub(super) async fn batches_go_out_and_are_settled(backend: &impl Backend) {
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
        judged(&submitted[2], 1, retry(9)),
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
        ledger
            .runs(Some(RunState::Completed), None, 10)
            .await
            .unwrap(),
        [shown]
    );
    assert_eq!(
        ledger
            .runs(Some(RunState::Running), None, 10)
            .await
            .unwrap(),
        []
    );
}

pub(super) async fn an_outcome_may_overtake_its_recording(backend: &impl Backend) {
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

pub(super) async fn follow_ups_exist_exactly_once(backend: &impl Backend) {
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

pub(super) async fn failures_wait_and_end_dead(backend: &impl Backend) {
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
    // Said again because the answer was lost, it tells the same.
    let again = settle(&ledger, &submitted[0], 1, retry(2)).await;
    assert_eq!(again.effect, Effect::Stale);
    assert_eq!(again.backlogs, settled[0].backlogs);
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

pub(super) async fn a_late_completion_wins(backend: &impl Backend) {
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

pub(super) async fn a_completion_that_was_called_lost_wins(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 2);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    let lost = submitted.iter().map(|b| judged(b, 1, Verdict::Lose));
    ledger.settle(&lost.collect::<Vec<_>>(), NOW).await.unwrap();
    // One waits for its next attempt, the other one's is out.
    send_out(&ledger, &submitted[1..], 2).await;
    let [waits, out] = &submitted[..] else {
        unreachable!()
    };
    for batch in [waits, out] {
        let outcome = judged(batch, 1, complete(3));
        let settled = ledger.settle(&[outcome], after(1)).await.unwrap();
        assert_eq!(effects(&settled), [Effect::CompletedLate]);
    }
    let shown = view(&ledger, run).await;
    assert_eq!((shown.batches.completed, shown.rows), (2, 6));
    assert_eq!(shown.state, RunState::Completed);

    // Whoever has the second attempt finds the rows, and says the same.
    send_out(&ledger, &submitted, 2).await;
    for verdict in [complete(3), kill("failed"), Verdict::Lose] {
        let settled = settle(&ledger, out, 2, verdict).await;
        assert_eq!(settled.effect, Effect::Duplicate);
    }
    assert_eq!(view(&ledger, run).await, shown);
    let history = detail(&ledger, out).await.history;
    let told: Vec<_> = history
        .iter()
        .map(|r| (r.attempt, r.verdict.as_str(), r.out_at))
        .collect();
    assert_eq!(told, [(1, "lost", Some(NOW)), (1, "completed", None)]);
}

pub(super) async fn strangers_are_unknown(backend: &impl Backend) {
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

pub(super) async fn a_large_group_is_one_group(backend: &impl Backend) {
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

pub(super) async fn sums_stop_at_the_largest_number(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 3);
    let run = submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    let huge = Verdict::Complete {
        rows: u64::MAX,
        statistics: Statistics::from([("bytes".to_owned(), u64::MAX), ("a\0b".to_owned(), 1)]),
        follow_ups: vec![],
    };
    let group = [
        judged(&submitted[0], 1, huge.clone()),
        judged(&submitted[1], 1, huge.clone()),
    ];
    ledger.settle(&group, NOW).await.unwrap();
    settle(&ledger, &submitted[2], 1, huge).await;
    let shown = view(&ledger, run).await;
    let largest = u64::try_from(i64::MAX).unwrap();
    assert_eq!((shown.rows, shown.statistics["bytes"]), (largest, largest));
    assert_eq!(shown.statistics["a\u{fffd}b"], 3);
}

pub(super) async fn a_group_of_many_runs_keeps_them_apart(backend: &impl Backend) {
    let ledger = backend.open().await;
    let mut runs = Vec::new();
    for _ in 0..20 {
        let submitted = batches("a", 2);
        runs.push((submit(&ledger, &submitted).await, submitted));
    }
    let dispatched: Vec<_> = runs
        .iter()
        .flat_map(|(_, batches)| batches)
        .map(|batch| (batch.id, Attempt::new(1)))
        .collect();
    ledger.record_out(&dispatched, NOW).await.unwrap();
    let group: Vec<_> = runs
        .iter()
        .enumerate()
        .flat_map(|(n, (_, batches))| {
            let second = if n % 2 == 0 { complete(1) } else { kill("x") };
            let first = judged(&batches[0], 1, complete(n as u64));
            [first, judged(&batches[1], 1, second)]
        })
        .collect();
    ledger.settle(&group, NOW).await.unwrap();
    for (n, (run, _)) in runs.iter().enumerate() {
        let shown = view(&ledger, *run).await;
        let (completed, dead) = if n % 2 == 0 { (2, 0) } else { (1, 1) };
        assert_eq!(shown.state, RunState::Completed);
        assert_eq!(
            (shown.batches.completed, shown.batches.dead),
            (completed, dead)
        );
        assert_eq!(shown.rows, n as u64 + completed - 1);
    }
}
