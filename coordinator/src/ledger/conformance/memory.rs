//! What must survive a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::id::RunId;

use super::{
    Backend, NOW, after, asks_for, batches, complete, judged, kill, new_run, send_out, settle,
    submit, submit_as, view,
};
use crate::ledger::{
    DeadFilter, Ledger, Memory, MemoryLedger, NewRun, OperationsLedger, SettlementLedger, Webhook,
};
use crate::run::RunState;

fn entries(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(name, value): &(&str, &str)| (String::from(*name), String::from(*value));
    entries.iter().map(owned).collect()
}

pub(super) async fn what_is_remembered_survives(backend: &impl Backend) {
    let ledger = backend.open().await;
    assert_eq!(
        ledger.remembered(Memory::Limit).await.unwrap(),
        entries(&[])
    );
    let first = entries(&[("site/ä 'x'", "{\"rate\":5}"), ("b", "1")]);
    ledger.remember(Memory::Limit, &first).await.unwrap();
    ledger
        .remember(Memory::Schedule, &entries(&[("b", "other")]))
        .await
        .unwrap();
    ledger
        .remember(Memory::Limit, &entries(&[("b", "2"), ("c", "")]))
        .await
        .unwrap();
    ledger.remember(Memory::Limit, &entries(&[])).await.unwrap();
    drop(ledger);
    let ledger = backend.open().await;
    let expected = entries(&[("site/ä 'x'", "{\"rate\":5}"), ("b", "2"), ("c", "")]);
    assert_eq!(ledger.remembered(Memory::Limit).await.unwrap(), expected);
    assert_eq!(
        ledger.remembered(Memory::Schedule).await.unwrap(),
        entries(&[("b", "other")])
    );
}

/// Webhooks that are due.
async fn due(ledger: &impl Ledger, seconds: u64) -> Vec<Webhook> {
    let webhooks = ledger.webhooks_due(after(seconds), 10).await.unwrap();
    for webhook in &webhooks {
        assert_eq!(webhook.url, "https://example.com/done?x=1");
        assert_eq!(webhook.run, view(ledger, webhook.run.run).await);
        assert!(webhook.run.finished_at.is_some());
    }
    webhooks
}

/// The only one that is due.
async fn one_due(ledger: &impl Ledger, seconds: u64, run: RunId, failures: u32) -> Webhook {
    let mut due = due(ledger, seconds).await;
    let found: Vec<_> = due.iter().map(|due| (due.run.run, due.failures)).collect();
    assert_eq!(found, [(run, failures)]);
    due.remove(0)
}

fn with_webhook() -> NewRun {
    NewRun {
        webhook: Some("https://example.com/done?x=1".into()),
        ..new_run()
    }
}

pub(super) async fn webhooks_are_due_when_runs_finish(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 2);
    let run = submit_as(&ledger, with_webhook(), &submitted).await;
    let silent = batches("a", 1);
    submit(&ledger, &silent).await;
    settle(&ledger, &silent[0], 1, complete(1)).await;
    send_out(&ledger, &submitted, 1).await;
    settle(&ledger, &submitted[0], 1, complete(1)).await;
    assert_eq!(due(&ledger, 99).await, []);
    assert_eq!(ledger.next_webhook().await.unwrap(), None);
    let last = [judged(&submitted[1], 1, kill("failed"))];
    ledger.settle(&last, after(5)).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), Some(after(5)));
    assert_eq!(due(&ledger, 4).await, []);
    let call = one_due(&ledger, 5, run, 0).await;

    let again = Some(after(15));
    ledger.webhook_called(&call, 1, again).await.unwrap();
    assert_eq!(due(&ledger, 14).await, []);
    let call = one_due(&ledger, 15, run, 1).await;
    ledger.webhook_called(&call, 1, None).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), None);

    // It is told once, until it has run again.
    settle(&ledger, &submitted[1], 1, complete(1)).await;
    assert_eq!(ledger.next_webhook().await.unwrap(), None);
}

pub(super) async fn every_end_of_a_run_is_told(backend: &impl Backend) {
    let ledger = backend.open().await;
    let submitted = batches("a", 1);
    let run = submit_as(&ledger, with_webhook(), &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    settle(&ledger, &submitted[0], 1, kill("failed")).await;
    let first = one_due(&ledger, 0, run, 0).await;
    let redriven = ledger
        .redrive(&DeadFilter::default(), 9, NOW, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(redriven.batches, 1);
    assert_eq!(ledger.next_webhook().await.unwrap(), None);
    let again = Some(after(50));
    ledger.webhook_called(&first, 5, again).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), None, "it runs");

    // The answer to the first call arrives after the second end.
    let second_end = [judged(&submitted[0], 2, kill("failed"))];
    ledger.settle(&second_end, after(7)).await.unwrap();
    ledger.webhook_called(&first, 0, None).await.unwrap();
    let second = one_due(&ledger, 7, run, 0).await;
    assert_ne!(first.run.finished_at, second.run.finished_at);
    settle(&ledger, &submitted[0], 2, asks_for(&["a"])).await;
    assert_eq!(view(&ledger, run).await.state, RunState::Running);
    assert_eq!(ledger.next_webhook().await.unwrap(), None);

    // Cancelled is finished, too, when nothing is left.
    ledger.cancel(run, after(20)).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), None);
    ledger.cancel_pending(run, 10, after(21)).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), Some(after(21)));
    one_due(&ledger, 21, run, 0).await;
}
