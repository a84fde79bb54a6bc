//! What guards the storage itself.

use super::{Backend, NOW, batches, complete, effects, judged, send_out, submit};
use crate::ledger::{Effect, LedgerError, LedgerViews, SettlementLedger};

pub(super) async fn one_owner_at_a_time(backend: &impl Backend) {
    let first = backend.open().await;
    let run = submit(&first, &batches("a", 1)).await;
    let error = backend.try_open().await.err().expect("it has an owner");
    assert!(matches!(error, LedgerError::Owned { .. }), "{error}");
    let process = std::process::id().to_string();
    assert!(error.to_string().contains(&process), "{error}");
    drop(first);
    let second = backend.open().await;
    assert!(second.run(run).await.unwrap().is_some());
}

pub(super) async fn newer_tables_are_refused<B: Backend>(backend: &B) {
    drop(backend.open().await);
    backend
        .execute(&format!(
            "INSERT INTO {} (version, description, success, checksum, execution_time) \
             VALUES (7777, 'from the future', true, 'x', 0)",
            B::MIGRATIONS
        ))
        .await;
    let error = backend.try_open().await.err().expect("it is newer");
    assert!(
        matches!(
            error,
            LedgerError::Newer {
                found: 7777,
                known: 1..1000,
                ..
            }
        ),
        "{error}"
    );
}

pub(super) async fn a_damaged_cell_is_named_and_stops_nobody_else(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 2);
    submit(&ledger, &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    let damaged = submitted[0].id;
    let id = backend.literal(damaged);
    backend
        .execute(&format!(
            "UPDATE batches SET pipeline = 'Not a name' WHERE id = {id}"
        ))
        .await;
    let group = [
        judged(&submitted[0], 1, complete(1)),
        judged(&submitted[1], 1, complete(1)),
    ];
    let error = ledger.settle(&group, NOW).await.unwrap_err();
    let named = format!("batches.pipeline holds \"Not a name\" in row {damaged}");
    assert!(error.to_string().contains(&named), "{error}");
    // One by one, the good one is settled.
    ledger.settle(&group[..1], NOW).await.unwrap_err();
    let settled = ledger.settle(&group[1..], NOW).await.unwrap();
    assert_eq!(effects(&settled), [Effect::Completed]);
}
