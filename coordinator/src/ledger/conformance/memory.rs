//! What must survive a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    Backend, NOW, after, asks_for, batches, complete, kill, new_run, send_out, settle, submit,
    submit_as, view,
};
use crate::ledger::{
    DeadFilter, Ledger, Memory, MemoryLedger, NewRun, OperationsLedger, SettlementLedger,
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

/// Runs whose webhook is due, with the number of failed calls.
async fn due(ledger: &impl Ledger, seconds: u64) -> Vec<(shared::id::RunId, u32)> {
    let webhooks = ledger.webhooks_due(after(seconds), 10).await.unwrap();
    for webhook in &webhooks {
        assert_eq!(webhook.url, "https://example.com/done?x=1");
        assert_eq!(webhook.run, view(ledger, webhook.run.run).await);
        assert!(webhook.run.finished_at.is_some());
    }
    webhooks
        .iter()
        .map(|webhook| (webhook.run.run, webhook.failures))
        .collect()
}

pub(super) async fn webhooks_are_due_when_runs_finish(backend: &impl Backend) {
    let ledger = backend.open().await;
    let with_webhook = || NewRun {
        webhook: Some("https://example.com/done?x=1".into()),
        ..new_run()
    };
    let submitted = batches("a", 2);
    let run = submit_as(&ledger, with_webhook(), &submitted).await;
    let silent = batches("a", 1);
    submit(&ledger, &silent).await;
    settle(&ledger, &silent[0], 1, complete(1)).await;
    send_out(&ledger, &submitted, 1).await;
    settle(&ledger, &submitted[0], 1, complete(1)).await;
    assert_eq!(
        (due(&ledger, 99).await, ledger.next_webhook().await.unwrap()),
        (vec![], None)
    );
    let last = [super::judged(&submitted[1], 1, kill("failed"))];
    ledger.settle(&last, after(5)).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), Some(after(5)));
    assert_eq!(due(&ledger, 4).await, []);
    assert_eq!(due(&ledger, 5).await, [(run, 0)]);

    ledger
        .webhook_called(run, 1, Some(after(15)))
        .await
        .unwrap();
    assert_eq!(due(&ledger, 14).await, []);
    assert_eq!(due(&ledger, 15).await, [(run, 1)]);
    ledger.webhook_called(run, 1, None).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), None);

    // It is told once, until it has run again.
    settle(&ledger, &submitted[1], 1, complete(1)).await;
    assert_eq!(ledger.next_webhook().await.unwrap(), None);
    let submitted = batches("a", 1);
    let run = submit_as(&ledger, with_webhook(), &submitted).await;
    send_out(&ledger, &submitted, 1).await;
    settle(&ledger, &submitted[0], 1, kill("failed")).await;
    ledger
        .webhook_called(run, 4, Some(after(50)))
        .await
        .unwrap();
    let redriven = ledger
        .redrive(&DeadFilter::default(), 9, NOW, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(redriven.batches, 1);
    assert_eq!(ledger.next_webhook().await.unwrap(), None);
    ledger
        .webhook_called(run, 5, Some(after(50)))
        .await
        .unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), None, "it runs");
    settle(&ledger, &submitted[0], 2, kill("failed")).await;
    assert_eq!(due(&ledger, 0).await, [(run, 0)]);
    settle(&ledger, &submitted[0], 2, asks_for(&["a"])).await;
    assert_eq!(view(&ledger, run).await.state, RunState::Running);
    assert_eq!(ledger.next_webhook().await.unwrap(), None);

    // Cancelled is finished, too, when nothing is left.
    ledger.cancel(run, after(20)).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), None);
    ledger.cancel_pending(run, 10, after(21)).await.unwrap();
    assert_eq!(ledger.next_webhook().await.unwrap(), Some(after(21)));
    assert_eq!(due(&ledger, 21).await, [(run, 0)]);
}
