//! What finds lost batches and culprits.

use shared::id::BatchId;
use shared::name::{Attempt, Instance};

use super::{
    Backend, after, batches, complete, hold, key, kill, pipeline, send_out, settle, submit, view,
};
use crate::ledger::OperationsLedger;
use crate::ledger::transition::{State, Stored};
use crate::ledger::{DispatchLedger, Effect, OutSince, ReconciliationLedger, Suspect, Verdict};

pub(super) async fn what_is_out_for_long_is_found(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 5);
    let run = submit(&ledger, &submitted).await;
    for (n, second) in [(2, 10), (0, 20), (1, 30), (3, 40)] {
        let dispatched = [(submitted[n].id, Attempt::new(1))];
        ledger.record_out(&dispatched, after(second)).await.unwrap();
    }
    settle(&ledger, &submitted[0], 1, complete(1)).await;
    let found = ledger.out_since(after(40), 10).await.unwrap();
    let expected = |n: usize, second| OutSince {
        id: submitted[n].id,
        pipeline: pipeline(),
        key: key("a"),
        attempt: Attempt::new(1),
        since: after(second),
    };
    assert_eq!(found, [expected(2, 10), expected(1, 30)]);
    assert_eq!(
        ledger.out_since(after(40), 1).await.unwrap(),
        [expected(2, 10)]
    );

    // Lost: the attempt is over, none was burnt, and it goes out again.
    let settled = settle(&ledger, &submitted[2], 1, Verdict::Lose).await;
    assert_eq!((settled.effect, settled.backlogs.len()), (Effect::Again, 1));
    assert_eq!(
        settle(&ledger, &submitted[2], 1, Verdict::Lose)
            .await
            .effect,
        Effect::Stale
    );
    assert_eq!(
        settle(&ledger, &submitted[2], 1, kill("failed"))
            .await
            .effect,
        Effect::Stale
    );
    send_out(&ledger, &submitted[2..3], 2).await;
    assert_eq!(
        settle(&ledger, &submitted[2], 2, complete(1)).await.effect,
        Effect::Completed
    );
    assert_eq!(view(&ledger, run).await.retries, 0);
}

pub(super) async fn suspects_are_remembered(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    let (run, batch) = (submit(&ledger, &submitted).await, submitted[0].id);
    send_out(&ledger, &submitted, 1).await;
    let attempt = Attempt::new(1);
    let stored = Stored {
        state: State::Out,
        attempt,
        failures: 0,
        releases: 0,
        called_off: false,
    };
    let mut suspect = Suspect {
        stored,
        deaths: 0,
        alone_on: None,
    };
    assert_eq!(ledger.suspect(batch).await.unwrap(), Some(suspect.clone()));
    let alone_on = Instance::from("worker-b".to_owned());
    ledger
        .suspected(batch, attempt, 2, Some(&alone_on))
        .await
        .unwrap();
    (suspect.deaths, suspect.alone_on) = (2, Some(alone_on));
    assert_eq!(ledger.suspect(batch).await.unwrap(), Some(suspect.clone()));
    ledger.suspected(batch, attempt, 3, None).await.unwrap();
    ledger.cancel(run, after(1)).await.unwrap();
    (suspect.deaths, suspect.alone_on) = (3, None);
    suspect.stored.called_off = true;
    assert_eq!(ledger.suspect(batch).await.unwrap(), Some(suspect));

    // Whoever ran it alone has said what became of it; its deaths count on.
    ledger
        .suspected(batch, attempt, 3, Some(&super::worker()))
        .await
        .unwrap();
    settle(&ledger, &submitted[0], 1, complete(1)).await;
    let done = ledger.suspect(batch).await.unwrap().unwrap();
    assert_eq!((done.deaths, done.alone_on), (3, None));

    let stranger = BatchId::generate();
    assert_eq!(ledger.suspect(stranger).await.unwrap(), None);
    ledger.suspected(stranger, attempt, 1, None).await.unwrap();
    assert_eq!(ledger.suspect(stranger).await.unwrap(), None);
}

pub(super) async fn only_the_attempt_that_is_out_is_suspected(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    submit(&ledger, &submitted).await;
    let batch = submitted[0].id;
    let worker = Instance::from("w\0rker".to_owned());
    let suspected = async |attempt| {
        let attempt = Attempt::new(attempt);
        let told = ledger.suspected(batch, attempt, attempt.number(), Some(&worker));
        told.await.unwrap();
        let suspect = ledger.suspect(batch).await.unwrap().unwrap();
        (suspect.deaths, suspect.alone_on.is_some())
    };
    // Published, and not recorded yet.
    assert_eq!(suspected(1).await, (1, true));
    settle(&ledger, &submitted[0], 1, hold()).await;
    assert_eq!(suspected(1).await, (1, false), "a word that comes late");
    send_out(&ledger, &submitted, 2).await;
    assert_eq!(suspected(1).await, (1, false));
    assert_eq!(suspected(3).await, (1, false));
    assert_eq!(suspected(2).await, (2, true));
    settle(&ledger, &submitted[0], 2, complete(1)).await;
    assert_eq!(suspected(2).await, (2, false));
}
