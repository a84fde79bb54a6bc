//! Judging outcomes, and settling around a damaged row.

use std::collections::BTreeSet;

use serde_json::value::RawValue;
use shared::config::BrokerConfig;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key};
use shared::outcome::FollowUp;

use super::*;

/// Settles everything but these batches, whose rows make no sense.
struct Damaged(BTreeSet<BatchId>);

#[async_trait]
impl SettlementLedger for Damaged {
    async fn settle(&self, group: &[Judged], _: Timestamp) -> Result<Vec<Settled>, LedgerError> {
        if group.iter().any(|judged| self.0.contains(&judged.batch)) {
            return Err(LedgerError::Damaged {
                table: "batches",
                column: "state",
                value: "9".into(),
            });
        }
        let completed = |judged: &Judged| Settled {
            batch: judged.batch,
            attempt: judged.attempt,
            effect: Effect::Completed,
            backlogs: vec![],
        };
        Ok(group.iter().map(completed).collect())
    }
}

fn stage(ledger: Damaged) -> SettlementStage {
    let connector = Connector::new(&BrokerConfig::default(), &Instance::generate("test"));
    let configured = PipelineName::new("known").unwrap();
    SettlementStage {
        ledger: Arc::new(ledger),
        publishing: connector.publishing_pool(),
        connector,
        lanes: 1,
        pipelines: [(configured, PipelineConfig::default())].into(),
        pulse: Arc::new(Mutex::new(Pulse::new(Instant::now()))),
        notices: mpsc::channel(1).0,
        draining: CancellationToken::new(),
    }
}

fn report(follow_ups: &[&str]) -> Report {
    let follow_up = |pipeline: &&str| FollowUp {
        pipeline: PipelineName::new(pipeline).unwrap(),
        key: Key::default(),
        payload: RawValue::from_string("1".into()).unwrap(),
    };
    Report {
        batch: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("known").unwrap(),
        attempt: Attempt::new(1),
        redelivered: false,
        took: None,
        outcome: Outcome::Completed(Completed {
            follow_ups: follow_ups.iter().map(follow_up).collect(),
            ..Completed::default()
        }),
    }
}

#[tokio::test]
async fn damaged_rows_stop_nobody_else() {
    let worker = Instance::generate("worker");
    let reports: Vec<Report> = (0..100).map(|_| report(&[])).collect();
    let damaged = BTreeSet::from([reports[0].batch, reports[41].batch, reports[42].batch]);
    let stage = stage(Damaged(damaged.clone()));
    let group: Vec<Judged> = reports
        .into_iter()
        .map(|report| stage.judge(&worker, report))
        .collect();
    let settled = stage.settle(&group).await;
    assert_eq!(settled.len(), group.len());
    for (judged, settled) in group.iter().zip(&settled) {
        match settled {
            Ok(settled) => assert_eq!(settled.batch, judged.batch),
            Err(_) => assert!(damaged.contains(&judged.batch)),
        }
    }
    assert_eq!(settled.iter().filter(|s| s.is_err()).count(), 3);
    assert_eq!(stage.settle(&[]).await.len(), 0);
}

#[tokio::test]
async fn follow_ups_of_unknown_pipelines_kill() {
    let worker = Instance::generate("worker");
    let stage = stage(Damaged(BTreeSet::new()));
    let fine = stage.judge(&worker, report(&["known", "known"]));
    assert!(
        matches!(&fine.verdict, Verdict::Complete { follow_ups, .. } if follow_ups.len() == 2),
        "{fine:?}"
    );
    let bad = stage.judge(&worker, report(&["known", "unknown"]));
    let Verdict::Kill { reason, error } = bad.verdict else {
        panic!("{bad:?}")
    };
    assert_eq!(reason, BAD_FOLLOW_UP);
    assert!(error.contains("the pipeline unknown"), "{error}");
}
