//! Judging outcomes, and settling around a damaged row.

use std::collections::BTreeSet;

use serde_json::value::RawValue;
use shared::config::BrokerConfig;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key};
use shared::outcome::FollowUp;

use super::*;

/// Settles small groups, and nothing that holds one of these batches, whose rows make no sense.
struct Picky {
    damaged: BTreeSet<BatchId>,
    /// What is longer takes too long.
    longest: usize,
}

impl Default for Picky {
    fn default() -> Self {
        Self {
            damaged: BTreeSet::new(),
            longest: usize::MAX,
        }
    }
}

#[async_trait]
impl SettlementLedger for Picky {
    async fn settle(&self, group: &[Judged], _: Timestamp) -> Result<Vec<Settled>, LedgerError> {
        if group.len() > self.longest {
            return Err(sqlx::Error::PoolTimedOut.into());
        }
        if group
            .iter()
            .any(|judged| self.damaged.contains(&judged.batch))
        {
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

struct Sure(bool);

impl Ownership for Sure {
    fn is_sure(&self) -> bool {
        self.0
    }
}

fn stage(ledger: Picky) -> SettlementStage {
    let connector = Connector::new(&BrokerConfig::default(), &Instance::generate("test"));
    let configured = PipelineName::new("known").unwrap();
    SettlementStage {
        ownership: Arc::new(Sure(true)),
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
    let stage = stage(Picky {
        damaged: damaged.clone(),
        ..Picky::default()
    });
    let group: Vec<Judged> = reports
        .into_iter()
        .map(|report| stage.judge(&worker, report))
        .collect();
    let (settled, _) = stage.settle(&group).await;
    assert_eq!(settled.len(), group.len());
    for (judged, settled) in group.iter().zip(&settled) {
        match settled {
            Ok(settled) => assert_eq!(settled.batch, judged.batch),
            Err(_) => assert!(damaged.contains(&judged.batch)),
        }
    }
    assert_eq!(settled.iter().filter(|s| s.is_err()).count(), 3);
    assert_eq!(stage.settle(&[]).await.0.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_group_that_takes_too_long_is_settled_in_parts() {
    let worker = Instance::generate("worker");
    let stage = stage(Picky {
        longest: 30,
        ..Picky::default()
    });
    let judge = |_| stage.judge(&worker, report(&[]));
    let group: Vec<Judged> = (0..100).map(judge).collect();
    let (settled, _) = stage.settle(&group).await;
    let settled: Vec<BatchId> = settled.into_iter().map(|s| s.unwrap().batch).collect();
    let asked: Vec<BatchId> = group.iter().map(|judged| judged.batch).collect();
    assert_eq!(settled, asked, "in their order");
}

#[tokio::test(start_paused = true)]
async fn who_may_not_be_the_owner_any_more_gives_up() {
    let worker = Instance::generate("worker");
    let mut stage = stage(Picky {
        longest: 0,
        ..Picky::default()
    });
    let group = [stage.judge(&worker, report(&[]))];
    let settling = tokio::time::timeout(Duration::from_mins(5), stage.settle(&group));
    assert!(
        settling.await.is_err(),
        "it is tried for as long as it takes"
    );
    stage.ownership = Arc::new(Sure(false));
    let (settled, given_up) = stage.settle(&group).await;
    assert!(settled.is_empty() && given_up.is_some());
}

#[tokio::test]
async fn follow_ups_of_unknown_pipelines_kill() {
    let worker = Instance::generate("worker");
    let stage = stage(Picky::default());
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

#[tokio::test]
async fn words_that_no_database_takes_are_mended() {
    let stage = stage(Picky::default());
    let worker = Instance::from(format!("w\0{}", "x".repeat(1_000)));
    let nul = FollowUp {
        pipeline: PipelineName::new("known").unwrap(),
        key: Key::default(),
        payload: RawValue::from_string("\"\\u0000\"".into()).unwrap(),
    };
    let mut asking = report(&[]);
    asking.outcome = Outcome::Completed(Completed {
        follow_ups: vec![nul],
        ..Completed::default()
    });
    let asking = stage.judge(&worker, asking);
    let name = asking.worker.unwrap();
    assert!(name.as_str().len() <= 255 && !name.as_str().contains('\0'));
    assert!(matches!(asking.verdict, Verdict::Kill { reason, .. } if reason == BAD_FOLLOW_UP));

    let mut failing = report(&[]);
    failing.outcome = Outcome::Failed {
        reason: "bad\0".into(),
        error: "\0".repeat(10_000),
    };
    let Verdict::Kill { reason, error } = stage.judge(&worker, failing).verdict else {
        panic!("it failed");
    };
    assert_eq!(reason, "bad\u{fffd}");
    assert!(error.len() <= shared::outcome::MAX_ERROR_BYTES && !error.contains('\0'));

    let mut counting = report(&[]);
    counting.outcome = Outcome::Completed(Completed {
        rows: u64::MAX,
        statistics: [("calls".into(), u64::MAX), ("\0".into(), 1)].into(),
        follow_ups: vec![],
    });
    let Verdict::Complete {
        rows, statistics, ..
    } = stage.judge(&worker, counting).verdict
    else {
        panic!("it is done");
    };
    assert_eq!(statistics.keys().collect::<Vec<_>>(), ["calls"]);
    assert!(rows < u64::MAX / 1_000_000 && statistics["calls"] == rows);
}
