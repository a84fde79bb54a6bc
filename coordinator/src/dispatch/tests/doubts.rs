//! The stage itself, and a ledger that wrote something whose answer nobody got.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::broker::Connector;
use shared::config::{Config, PipelineConfig};
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, Key, PipelineName};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::DispatchStage;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{
    Backlog, BacklogId, DispatchLedger, Judged, LedgerError, NewBatch, NewRun, OutBatch, Page,
    PendingBatch, SettlementLedger, SubmissionLedger, Verdict,
};
use crate::notice::Notice;
use crate::run::Priority;
use crate::topology::Topology;

/// Says which runs the dispatcher looks at, and shows nothing of them.
struct Doubtful {
    ledger: SqliteLedger,
    doubts: Notify,
    looked: mpsc::UnboundedSender<RunId>,
}

#[async_trait]
impl DispatchLedger for Doubtful {
    async fn backlogs(&self, run: Option<RunId>) -> Result<Vec<Backlog>, LedgerError> {
        self.ledger.backlogs(run).await
    }

    async fn doubted(&self) {
        self.doubts.notified().await;
    }

    async fn outs(&self) -> Result<Vec<OutBatch>, LedgerError> {
        self.ledger.outs().await
    }

    async fn read_pending(
        &self,
        backlog: &BacklogId,
        _: Timestamp,
        _: u32,
    ) -> Result<Page, LedgerError> {
        let _ = self.looked.send(backlog.run);
        Ok(Page {
            batches: vec![],
            more_due: None,
        })
    }

    async fn payloads(
        &self,
        batches: &[&PendingBatch],
    ) -> Result<Vec<Option<Box<RawValue>>>, LedgerError> {
        self.ledger.payloads(batches).await
    }

    async fn record_out(
        &self,
        dispatched: &[(BatchId, Attempt)],
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        self.ledger.record_out(dispatched, now).await
    }

    async fn waiting(&self, pipeline: &PipelineName, enough: u64) -> Result<u64, LedgerError> {
        self.ledger.waiting(pipeline, enough).await
    }
}

/// A run of one batch that is accepted, of which nobody is told.
async fn accept_silently(ledger: &SqliteLedger) -> (RunId, BatchId) {
    let run = NewRun {
        id: RunId::generate(),
        pipeline: PipelineName::new("hashes").unwrap(),
        priority: Priority::Normal,
        idempotency_key: None,
        webhook: None,
        created_at: Timestamp::now(),
    };
    let batch = NewBatch {
        id: BatchId::generate(),
        pipeline: run.pipeline.clone(),
        key: Key::default(),
        payload: RawValue::from_string("1".into()).unwrap(),
        due: Timestamp::now(),
    };
    let id = batch.id;
    ledger.open_run(&run).await.unwrap();
    ledger.append(run.id, &[batch]).await.unwrap();
    ledger.accept(run.id, &[0; 32]).await.unwrap();
    (run.id, id)
}

/// The stage at work, with a window of one.
struct Running {
    ledger: Arc<Doubtful>,
    looks: mpsc::UnboundedReceiver<RunId>,
    draining: CancellationToken,
    stage: JoinHandle<Result<(), LedgerError>>,
    tell: mpsc::Sender<Notice>,
}

impl Running {
    fn start(ledger: SqliteLedger) -> Self {
        let (looked, looks) = mpsc::unbounded_channel();
        let ledger = Arc::new(Doubtful {
            ledger,
            doubts: Notify::new(),
            looked,
        });
        let pipeline = PipelineConfig {
            window_min: 1,
            window_max: 1,
            ..PipelineConfig::default()
        };
        let config = Config {
            pipelines: [(PipelineName::new("hashes").unwrap(), pipeline)].into(),
            ..Config::default()
        };
        let connector = Connector::new(&config.broker, &Instance::generate("test"));
        let (tell, notices) = mpsc::channel(1);
        let draining = CancellationToken::new();
        let stage = DispatchStage {
            ledger: ledger.clone(),
            publishing: connector.publishing_pool(),
            topology: Topology::new(&config, connector),
            paused: BTreeSet::new(),
            notices,
            draining: draining.clone(),
        };
        Self {
            ledger,
            looks,
            draining,
            stage: tokio::spawn(stage.run(config)),
            tell,
        }
    }

    async fn looks_at(&mut self, wanted: RunId) {
        let look = timeout(Duration::from_secs(20), async {
            while let Some(run) = self.looks.recv().await {
                if run == wanted {
                    return;
                }
            }
        });
        look.await
            .expect("it looks at what it was never told of, before a minute has passed");
    }

    async fn end(self) {
        self.draining.cancel();
        self.stage.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_was_written_without_an_answer_goes_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.db");
    let ledger = SqliteLedger::open(&file).await.unwrap();
    let (first, _) = accept_silently(&ledger).await;
    let mut running = Running::start(ledger);
    running.looks_at(first).await;
    let (second, _) = accept_silently(&running.ledger.ledger).await;
    running.ledger.doubts.notify_one();
    running.looks_at(second).await;
    running.end().await;
}

#[tokio::test]
async fn what_went_out_of_the_window_without_an_answer_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.db");
    let ledger = SqliteLedger::open(&file).await.unwrap();
    let (run, batch) = accept_silently(&ledger).await;
    let attempt = Attempt::new(1);
    let out = [(batch, attempt)];
    ledger.record_out(&out, Timestamp::now()).await.unwrap();
    let mut running = Running::start(ledger);
    // There is room for one: the second is sent when the first was heard, after the start.
    for _ in 0..2 {
        let slots = Notice::Slots(HashMap::new());
        running.tell.send(slots).await.unwrap();
    }

    let lost = Judged {
        batch,
        attempt,
        worker: None,
        took: None,
        verdict: Verdict::Lose,
    };
    let ledger = &running.ledger.ledger;
    ledger.settle(&[lost], Timestamp::now()).await.unwrap();
    running.ledger.doubts.notify_one();
    running.looks_at(run).await;
    running.end().await;
}
