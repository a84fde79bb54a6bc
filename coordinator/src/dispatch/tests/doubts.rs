//! The stage itself, and a ledger that wrote something whose answer nobody got.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::value::RawValue;
use shared::broker::Connector;
use shared::config::{Config, PipelineConfig};
use shared::id::BatchId;
use shared::name::{Attempt, Instance, Key};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::super::*;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{
    Backlog, BacklogId, NewBatch, NewRun, OutBatch, PendingBatch, SubmissionLedger,
};
use crate::run::Priority;

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

/// A run that is accepted, of which nobody is told.
async fn accept_silently(ledger: &SqliteLedger) -> RunId {
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
    ledger.open_run(&run).await.unwrap();
    ledger.append(run.id, &[batch]).await.unwrap();
    ledger.accept(run.id, &[0; 32]).await.unwrap();
    run.id
}

#[tokio::test]
async fn what_was_written_without_an_answer_goes_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.db");
    let (looked, mut looks) = mpsc::unbounded_channel();
    let ledger = Arc::new(Doubtful {
        ledger: SqliteLedger::open(&file).await.unwrap(),
        doubts: Notify::new(),
        looked,
    });
    let config = Config {
        pipelines: [(
            PipelineName::new("hashes").unwrap(),
            PipelineConfig::default(),
        )]
        .into(),
        ..Config::default()
    };
    let connector = Connector::new(&config.broker, &Instance::generate("test"));
    let (_tell, notices) = mpsc::channel(1);
    let stage = DispatchStage {
        ledger: ledger.clone(),
        publishing: connector.publishing_pool(),
        topology: Topology::new(&config, connector),
        paused: BTreeSet::new(),
        notices,
        draining: CancellationToken::new(),
    };
    let first = accept_silently(&ledger.ledger).await;
    let draining = stage.draining.clone();
    let running = tokio::spawn(stage.run(config));
    assert_eq!(looks.recv().await, Some(first), "known from the start");

    let second = accept_silently(&ledger.ledger).await;
    ledger.doubts.notify_one();
    let look = timeout(Duration::from_secs(20), async {
        while let Some(run) = looks.recv().await {
            if run == second {
                return;
            }
        }
    });
    look.await.expect("it looks at what it was never told of");
    draining.cancel();
    running.await.unwrap().unwrap();
}
