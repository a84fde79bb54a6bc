//! How runs come to be.

use shared::id::RunId;

use super::{Backend, NOW, batches, new_run, submit, view};
use crate::ledger::{
    DispatchLedger, KnownRun, LedgerError, LedgerViews, NewRun, Opened, OperatorViews,
    SubmissionLedger,
};
use crate::run::RunState;

pub(super) async fn a_run_exists_only_once_it_is_accepted(backend: &impl Backend) {
    let ledger = backend.open().await;
    let run = new_run();
    ledger.open_run(&run).await.unwrap();
    ledger.append(run.id, &batches("a", 3)).await.unwrap();
    assert_eq!(ledger.run(run.id).await.unwrap(), None);
    assert_eq!(ledger.runs(None, None, 10).await.unwrap(), []);
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

pub(super) async fn a_small_run_is_taken_at_once(backend: &impl Backend) {
    let ledger = backend.open().await;
    let run = NewRun {
        idempotency_key: Some("small".into()),
        ..new_run()
    };
    let taken = ledger.take(&run, &batches("a", 3), &[7; 32]).await.unwrap();
    let accepted = view(&ledger, run.id).await;
    assert_eq!(taken, Opened::New(accepted.clone()));
    assert_eq!(
        (accepted.batches.accepted, accepted.batches.pending),
        (3, 3)
    );
    assert_eq!(ledger.backlog().await.unwrap(), 3);
    assert_eq!(ledger.backlogs(Some(run.id)).await.unwrap().len(), 1);

    // The key is taken: nothing of the second one is kept.
    let second = NewRun {
        id: RunId::generate(),
        ..run
    };
    let taken = ledger.take(&second, &batches("b", 1), &[8; 32]).await;
    let known = KnownRun {
        run: Box::new(accepted),
        digest: vec![7; 32],
    };
    assert_eq!(taken.unwrap(), Opened::Known(known));
    assert_eq!(ledger.run(second.id).await.unwrap(), None);
    assert_eq!(ledger.backlog().await.unwrap(), 3);
}

pub(super) async fn an_idempotency_key_gives_the_same_run(backend: &impl Backend) {
    let ledger = backend.open().await;
    let first = NewRun {
        idempotency_key: Some("nightly".into()),
        ..new_run()
    };
    assert_eq!(ledger.open_run(&first).await.unwrap(), Opened::New(()));
    let second = NewRun {
        idempotency_key: Some("nightly".into()),
        ..new_run()
    };
    match ledger.open_run(&second).await.unwrap() {
        Opened::Known(KnownRun { run, digest }) => {
            assert_eq!((run.run, digest), (first.id, vec![]));
        }
        Opened::New(()) => panic!("the key is taken while its submission is under way"),
    }
    ledger.append(first.id, &batches("a", 1)).await.unwrap();
    let accepted = ledger.accept(first.id, &[9; 32]).await.unwrap();
    let known = Opened::Known(KnownRun {
        run: Box::new(accepted),
        digest: vec![9; 32],
    });
    assert_eq!(ledger.open_run(&second).await.unwrap(), known);
    // Runs without a key never meet.
    assert_eq!(ledger.open_run(&new_run()).await.unwrap(), Opened::New(()));
    assert_eq!(ledger.open_run(&new_run()).await.unwrap(), Opened::New(()));
}

pub(super) async fn what_a_crash_left_half_submitted_is_gone(backend: &impl Backend) {
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
        Opened::New(())
    );
}

/// Whoever did not hear the answer asks again.
pub(super) async fn saying_it_twice_changes_nothing(backend: &impl Backend) {
    let ledger = backend.open().await;
    let run = NewRun {
        idempotency_key: Some("k".into()),
        ..new_run()
    };
    assert_eq!(ledger.open_run(&run).await.unwrap(), Opened::New(()));
    assert_eq!(ledger.open_run(&run).await.unwrap(), Opened::New(()));
    let (first, second) = (batches("a", 700), batches("a", 2));
    for chunk in [&first, &first, &second, &second, &first] {
        ledger.append(run.id, chunk).await.unwrap();
    }
    ledger.append(run.id, &[]).await.unwrap();
    ledger.accept(run.id, &[7; 32]).await.unwrap();
    ledger.accept(run.id, &[7; 32]).await.unwrap();
    assert_eq!(view(&ledger, run.id).await.batches.pending, 702);
    // A chunk of one run is no chunk of another.
    let other = new_run();
    ledger.open_run(&other).await.unwrap();
    assert!(ledger.append(other.id, &first).await.is_err());
    assert_eq!(ledger.batches(other.id, None, None, 1).await.unwrap(), []);
    assert_eq!(view(&ledger, run.id).await.created_at, NOW);
}
