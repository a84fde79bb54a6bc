//! Operations against a real SQLite ledger.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::FutureExt;
use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::{Attempt, Key};
use tokio::sync::watch;

use super::cancel::CancelStage;
use super::*;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{
    DispatchLedger, Judged, LedgerViews, NewBatch, NewRun, Redriven, SettlementLedger,
    SubmissionLedger, Verdict,
};
use crate::run::BatchState;

struct Fixture {
    operations: Operations,
    ledger: Arc<SqliteLedger>,
    notices: mpsc::Receiver<Notice>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger.db");
        let ledger = Arc::new(SqliteLedger::open(&file).await.unwrap());
        let (tell, notices) = mpsc::channel(100);
        Self {
            operations: Operations {
                ledger: ledger.clone(),
                views: ledger.clone(),
                notices: tell,
                cancelled: Arc::default(),
                tasks: TaskTracker::new(),
                draining: CancellationToken::new(),
            },
            ledger,
            notices,
            _folder: folder,
        }
    }

    async fn run(&self, batches: usize) -> (RunId, Vec<BatchId>) {
        let run = NewRun {
            id: RunId::generate(),
            pipeline: PipelineName::new("hashes").unwrap(),
            priority: Priority::Normal,
            idempotency_key: None,
            webhook: None,
            created_at: Timestamp::now(),
        };
        let batch = || NewBatch {
            id: BatchId::generate(),
            pipeline: run.pipeline.clone(),
            key: Key::default(),
            payload: RawValue::from_string("1".into()).unwrap(),
            due: Timestamp::now(),
        };
        let batches: Vec<_> = std::iter::repeat_with(batch).take(batches).collect();
        self.ledger.open_run(&run).await.unwrap();
        self.ledger.append(run.id, &batches).await.unwrap();
        self.ledger.accept(run.id, &[0; 32]).await.unwrap();
        (run.id, batches.into_iter().map(|batch| batch.id).collect())
    }

    async fn settle(&self, batches: &[BatchId], verdict: &Verdict) {
        let judged: Vec<Judged> = batches
            .iter()
            .map(|batch| Judged {
                batch: *batch,
                attempt: Attempt::new(1),
                worker: None,
                took: None,
                verdict: verdict.clone(),
            })
            .collect();
        self.ledger.settle(&judged, Timestamp::now()).await.unwrap();
    }

    async fn kill(&self, batches: &[BatchId]) {
        let verdict = Verdict::Kill {
            reason: "poison".into(),
            error: "boom".into(),
        };
        self.settle(batches, &verdict).await;
    }

    fn heard(&mut self) -> Notice {
        self.notices.try_recv().unwrap()
    }
}

#[tokio::test]
async fn what_was_begun_is_told_although_the_client_went_away() {
    let mut fixture = Fixture::new().await;
    let (run, _) = fixture.run(1).await;
    let operations = fixture.operations.clone();
    for begun in [
        operations.pause(run).boxed(),
        operations.resume(run).boxed(),
        operations.prioritize(run, Priority::High).boxed(),
        operations.cancel(run).boxed(),
    ] {
        // Polled once, and dropped.
        assert!(begun.now_or_never().is_none());
        let told = tokio::time::timeout(Duration::from_secs(20), fixture.notices.recv());
        let notice = told.await.expect("the dispatcher is told");
        assert!(matches!(
            notice,
            Some(Notice::Stopped(id) | Notice::Changed(id)) if id == run
        ));
    }
    operations.cancelled.notified().await;
}

#[tokio::test]
async fn a_run_that_may_be_cancelled_is_looked_for() {
    let fixture = Fixture::new().await;
    let (run, _) = fixture.run(1).await;
    let operations = fixture.operations;
    fixture.ledger.close().await;
    let error = operations.cancel(run).await.unwrap_err();
    assert!(matches!(error, OperationError::Ledger(_)), "{error}");
    let rung = operations.cancelled.notified().now_or_never();
    assert!(rung.is_some());
}

#[tokio::test]
async fn a_run_is_paused_resumed_and_given_another_priority() {
    let mut fixture = Fixture::new().await;
    let (run, batches) = fixture.run(1).await;
    let operations = fixture.operations.clone();
    for _ in 0..2 {
        assert_eq!(operations.pause(run).await.unwrap().state, RunState::Paused);
        assert!(matches!(fixture.heard(), Notice::Stopped(id) if id == run));
    }
    let high = operations.prioritize(run, Priority::High).await.unwrap();
    assert_eq!(
        (high.priority, high.state),
        (Priority::High, RunState::Paused)
    );
    assert!(matches!(fixture.heard(), Notice::Changed(id) if id == run));
    assert_eq!(
        operations.resume(run).await.unwrap().state,
        RunState::Running
    );
    assert!(matches!(fixture.heard(), Notice::Changed(id) if id == run));

    let done = Verdict::Complete {
        rows: 0,
        statistics: [].into(),
        follow_ups: vec![],
    };
    fixture.settle(&batches, &done).await;
    for result in [
        operations.pause(run).await,
        operations.resume(run).await,
        operations.prioritize(run, Priority::Low).await,
        operations.cancel(run).await,
    ] {
        let finished = matches!(result, Err(OperationError::Finished(RunState::Completed)));
        assert!(finished, "{result:?}");
    }
    let nobody = RunId::generate();
    let result = operations.cancel(nobody).await;
    assert!(
        matches!(result, Err(OperationError::UnknownRun)),
        "{result:?}"
    );
    assert!(fixture.notices.try_recv().is_err(), "nothing happened");
}

#[tokio::test]
async fn a_cancelled_run_is_cancelled_batch_by_batch_also_after_a_restart() {
    let mut fixture = Fixture::new().await;
    let (run, batches) = fixture.run(25).await;
    // Two are out.
    let out: Vec<_> = batches[..2].iter().map(|b| (*b, Attempt::new(1))).collect();
    fixture
        .ledger
        .record_out(&out, Timestamp::now())
        .await
        .unwrap();
    for _ in 0..2 {
        let cancelled = fixture.operations.cancel(run).await.unwrap();
        assert_eq!(cancelled.state, RunState::Cancelled);
        assert!(matches!(fixture.heard(), Notice::Stopped(id) if id == run));
    }
    assert_eq!(
        fixture
            .ledger
            .run(run)
            .await
            .unwrap()
            .unwrap()
            .batches
            .pending,
        23
    );

    // The stage starts after that, as after a restart.
    let (cancelling, mut told) = watch::channel(Vec::new());
    let draining = CancellationToken::new();
    let stage = CancelStage {
        ledger: fixture.ledger.clone(),
        cancelled: fixture.operations.cancelled.clone(),
        cancelling,
        tasks: TaskTracker::new(),
        draining: draining.clone(),
    };
    let stage = tokio::spawn(stage.run());
    told.wait_for(|runs| runs == &[run]).await.unwrap();
    let counts = || async { fixture.ledger.run(run).await.unwrap().unwrap().batches };
    while counts().await.pending > 0 {
        tokio::task::yield_now().await;
    }
    let now = counts().await;
    assert_eq!((now.out, now.cancelled, now.accepted), (2, 23, 25));
    let page = fixture
        .operations
        .views
        .batches(run, Some(BatchState::Out), None, 10);
    assert_eq!(page.await.unwrap().len(), 2);

    // When the last outcome is in, workers need not be told any more.
    let done = Verdict::Complete {
        rows: 0,
        statistics: [].into(),
        follow_ups: vec![],
    };
    fixture.settle(&batches[..2], &done).await;
    told.wait_for(Vec::is_empty).await.unwrap();
    assert_eq!(counts().await.completed, 2);
    draining.cancel();
    stage.await.unwrap().unwrap();
}

#[tokio::test]
async fn dead_batches_are_redriven_by_filter_and_discarded_for_good() {
    let mut fixture = Fixture::new().await;
    let (run, batches) = fixture.run(10).await;
    let (other, others) = fixture.run(3).await;
    fixture.kill(&batches).await;
    fixture.kill(&others).await;
    let of = |run| DeadFilter {
        run: Some(run),
        ..DeadFilter::default()
    };
    let operations = fixture.operations.clone();
    assert_eq!(operations.matching(&of(run)).await.unwrap().batches, 10);
    assert_eq!(
        operations
            .matching(&DeadFilter::default())
            .await
            .unwrap()
            .batches,
        13
    );

    let none = DeadFilter {
        reason: Some("failed".into()),
        ..of(run)
    };
    let handled = operations.redrive(none, None).await.unwrap();
    assert_eq!(handled.batches, 0);
    assert!(fixture.notices.try_recv().is_err());

    let handled = operations.redrive(of(run), Some(2)).await.unwrap();
    assert_eq!((handled.batches, handled.interrupted), (10, false));
    let Notice::Pending(backlogs) = fixture.heard() else {
        panic!("the dispatcher is told")
    };
    assert_eq!(backlogs.len(), 1);
    // Two a second: the tenth is due four and a half seconds after the first.
    let pending = operations
        .views
        .batches(run, Some(BatchState::Pending), None, 100)
        .await
        .unwrap();
    let due: Vec<Timestamp> = pending.iter().map(|batch| batch.since).collect();
    let span = due[9].duration_since(due[0]);
    assert_eq!(span.as_millis(), 4_500, "{due:?}");

    let handled = operations.discard(of(other)).await.unwrap();
    assert_eq!(handled.batches, 3);
    let counts = fixture.ledger.run(other).await.unwrap().unwrap().batches;
    assert_eq!((counts.dead, counts.cancelled), (0, 3));
    assert_eq!(
        operations
            .matching(&DeadFilter::default())
            .await
            .unwrap()
            .batches,
        0
    );
}

#[tokio::test]
async fn a_paused_pipeline_is_told() {
    let mut fixture = Fixture::new().await;
    let pipeline = PipelineName::new("hashes").unwrap();
    let operations = fixture.operations.clone();
    operations.pause_pipeline(&pipeline, true).await.unwrap();
    assert!(matches!(fixture.heard(), Notice::PipelinePaused(name, true) if name == pipeline));
    let paused = operations.ledger.paused_pipelines().await.unwrap();
    assert!(paused.contains(&pipeline));
    operations.pause_pipeline(&pipeline, false).await.unwrap();
    assert!(matches!(fixture.heard(), Notice::PipelinePaused(name, false) if name == pipeline));
    assert!(
        operations
            .ledger
            .paused_pipelines()
            .await
            .unwrap()
            .is_empty()
    );
}

/// Redrives and discards so many batches, one call after the other.
struct Chunks(Mutex<Vec<u64>>);

impl Chunks {
    fn next(&self) -> u64 {
        self.0.lock().unwrap().pop().unwrap()
    }
}

#[async_trait]
impl OperationsLedger for Chunks {
    async fn cancel(&self, _: RunId, _: Timestamp) -> Result<Option<Run>, LedgerError> {
        unreachable!()
    }

    async fn cancel_pending(&self, _: RunId, _: u32, _: Timestamp) -> Result<u64, LedgerError> {
        unreachable!()
    }

    async fn cancelling(&self) -> Result<Vec<RunId>, LedgerError> {
        unreachable!()
    }

    async fn pause(&self, _: RunId, _: bool) -> Result<Option<Run>, LedgerError> {
        unreachable!()
    }

    async fn prioritize(&self, _: RunId, _: Priority) -> Result<Option<Run>, LedgerError> {
        unreachable!()
    }

    async fn paused_pipelines(&self) -> Result<BTreeSet<PipelineName>, LedgerError> {
        unreachable!()
    }

    async fn pause_pipeline(&self, _: &PipelineName, _: bool) -> Result<(), LedgerError> {
        unreachable!()
    }

    async fn redrive(
        &self,
        _: &DeadFilter,
        _: u32,
        _: Timestamp,
        _: Duration,
    ) -> Result<Redriven, LedgerError> {
        Ok(Redriven {
            batches: self.next(),
            backlogs: vec![],
        })
    }

    async fn discard(&self, _: &DeadFilter, _: u32, _: Timestamp) -> Result<u64, LedgerError> {
        Ok(self.next())
    }
}

#[tokio::test]
async fn a_short_chunk_is_not_the_last_one() {
    let fixture = Fixture::new().await;
    let chunks = || Operations {
        ledger: Arc::new(Chunks(Mutex::new(vec![0, 700, 2_000, 1_999]))),
        ..fixture.operations.clone()
    };
    let redriven = chunks().redrive(DeadFilter::default(), None).await.unwrap();
    let discarded = chunks().discard(DeadFilter::default()).await.unwrap();
    for handled in [redriven, discarded] {
        assert_eq!((handled.batches, handled.interrupted), (4_699, false));
    }
}
