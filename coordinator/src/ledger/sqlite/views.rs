//! What people ask of the ledger, in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use shared::name::Instance;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite};

use super::SqliteLedger;
use crate::ledger::group::{COMPLETED, KEPT_ATTEMPTS};
use crate::ledger::row::{Cells, state_number};
use crate::ledger::{DeadFilter, LedgerError, LedgerViews, OperatorViews};
use crate::run::{
    AttemptRecord, BatchDetail, BatchState, BatchSummary, DeadBatch, PipelineCounts, Run, RunState,
};

#[async_trait]
impl LedgerViews for SqliteLedger {
    async fn run(&self, run: RunId) -> Result<Option<Run>, LedgerError> {
        self.read_run(run).await
    }

    async fn runs(&self, state: Option<RunState>, limit: u32) -> Result<Vec<Run>, LedgerError> {
        // Two statements: only then does each have its index.
        let query = match state {
            Some(state) => {
                sqlx::query("SELECT * FROM runs WHERE state = ? ORDER BY id DESC LIMIT ?")
                    .bind(state.as_str())
            }
            None => sqlx::query(
                "SELECT * FROM runs WHERE state <> 'submitting' ORDER BY id DESC LIMIT ?",
            ),
        };
        let rows = query.bind(limit).fetch_all(&self.readers).await?;
        let mut runs = Vec::with_capacity(rows.len());
        for row in &rows {
            runs.push(self.with_statistics(Cells::runs(row).run()?).await?);
        }
        Ok(runs)
    }

    async fn dead(&self, filter: &DeadFilter, limit: u32) -> Result<Vec<DeadBatch>, LedgerError> {
        self.list_dead(filter, limit).await
    }
}

#[async_trait]
impl OperatorViews for SqliteLedger {
    async fn count_dead(&self, filter: &DeadFilter) -> Result<u64, LedgerError> {
        self.number_of_dead(filter).await
    }

    async fn batch(&self, batch: BatchId) -> Result<Option<BatchDetail>, LedgerError> {
        let row = sqlx::query(
            "SELECT b.*, p.body FROM batches b JOIN payloads p ON p.seq = b.seq \
             JOIN runs r ON r.id = b.run WHERE b.id = ? AND r.state <> 'submitting'",
        )
        .bind(batch.as_bytes().as_slice())
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let cells = Cells::batches(&row);
        Ok(Some(BatchDetail {
            batch,
            run: cells.run_id("run")?,
            pipeline: cells.pipeline("pipeline")?,
            key: cells.key("key")?,
            state: cells.state("state")?,
            attempts: cells.small_count("attempt")?,
            failures: cells.small_count("failures")?,
            since: cells.time("due")?,
            reason: cells.optional_text("reason")?,
            error: cells.optional_text("error")?,
            payload: Cells::new("payloads", &row).json("body")?,
            history: self.history(&cells).await?,
        }))
    }

    async fn batches(
        &self,
        run: RunId,
        state: Option<BatchState>,
        after: Option<BatchId>,
        limit: u32,
    ) -> Result<Vec<BatchSummary>, LedgerError> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT b.id, b.pipeline, b.key, b.state, b.attempt, b.due FROM runs r \
             CROSS JOIN batches b ON b.run = r.id WHERE r.state <> 'submitting' AND r.id = ",
        );
        query.push_bind(run.as_bytes().to_vec());
        if let Some(state) = state {
            // Spelled out, so that the partial indexes are seen to fit.
            query.push(" AND b.state = ").push(state_number(state));
        }
        if let Some(after) = after {
            query
                .push(" AND b.seq > (SELECT seq FROM batches WHERE id = ")
                .push_bind(after.as_bytes().to_vec())
                .push(")");
        }
        query.push(" ORDER BY b.seq LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(&self.readers).await?;
        let read = |row| {
            let cells = Cells::batches(row);
            Ok(BatchSummary {
                batch: cells.batch_id("id")?,
                pipeline: cells.pipeline("pipeline")?,
                key: cells.key("key")?,
                state: cells.state("state")?,
                attempts: cells.small_count("attempt")?,
                since: cells.time("due")?,
            })
        };
        rows.iter().map(read).collect()
    }

    async fn pipelines(&self) -> Result<Vec<PipelineCounts>, LedgerError> {
        let rows = sqlx::query(
            "SELECT name, pending, out FROM pipelines WHERE pending <> 0 OR out <> 0 ORDER BY name",
        )
        .fetch_all(&self.readers)
        .await?;
        let read = |row| {
            let cells = Cells::new("pipelines", row);
            Ok(PipelineCounts {
                pipeline: cells.pipeline("name")?,
                pending: cells.count("pending")?,
                out: cells.count("out")?,
            })
        };
        rows.iter().map(read).collect()
    }

    async fn oldest_due(&self, now: Timestamp) -> Result<Option<Timestamp>, LedgerError> {
        let row = sqlx::query(
            "SELECT min((SELECT b.due FROM batches b WHERE b.state = 0 AND b.run = r.id ORDER BY b.due LIMIT 1)) AS due \
             FROM runs r WHERE r.state = 'running'",
        )
        .fetch_one(&self.readers)
        .await?;
        let due = Cells::batches(&row).optional_time("due")?;
        Ok(due.filter(|due| *due <= now))
    }
}

impl SqliteLedger {
    pub(super) async fn read_run(&self, run: RunId) -> Result<Option<Run>, LedgerError> {
        let row = sqlx::query("SELECT * FROM runs WHERE id = ? AND state <> 'submitting'")
            .bind(run.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        match row {
            Some(row) => Ok(Some(self.with_statistics(Cells::runs(&row).run()?).await?)),
            None => Ok(None),
        }
    }

    pub(super) async fn with_statistics(&self, mut run: Run) -> Result<Run, LedgerError> {
        let rows = sqlx::query("SELECT name, value FROM run_statistics WHERE run = ?")
            .bind(run.run.as_bytes().as_slice())
            .fetch_all(&self.readers)
            .await?;
        for row in &rows {
            let cells = Cells::new("run_statistics", row);
            run.statistics
                .insert(cells.text("name")?, cells.count("value")?);
        }
        Ok(run)
    }

    /// The attempts of a batch, oldest first.
    async fn history(
        &self,
        batch: &Cells<'_, SqliteRow>,
    ) -> Result<Vec<AttemptRecord>, LedgerError> {
        let rows = sqlx::query(
            "SELECT * FROM attempts WHERE batch = ? ORDER BY attempt DESC, settled_at DESC LIMIT ?",
        )
        .bind(batch.seq()?)
        .bind(KEPT_ATTEMPTS)
        .fetch_all(&self.readers)
        .await?;
        let read = |row| {
            let cells = Cells::new("attempts", row);
            Ok(AttemptRecord {
                attempt: cells.small_count("attempt")?,
                worker: cells.optional_text("worker")?.map(Instance::from),
                out_at: cells.optional_time("out_at")?,
                settled_at: cells.time("settled_at")?,
                took_ms: cells.optional_count("took_ms")?,
                verdict: cells.text("verdict")?,
                error: cells.optional_text("error")?,
            })
        };
        let mut history: Vec<AttemptRecord> = rows
            .iter()
            .rev()
            .map(read)
            .collect::<Result<_, LedgerError>>()?;
        // The attempt that completed the batch in time stands in the batch's own row.
        let completed = batch.state("state")? == BatchState::Completed;
        if completed && history.iter().all(|record| record.verdict != COMPLETED) {
            history.push(AttemptRecord {
                attempt: batch.small_count("attempt")?,
                worker: batch.optional_text("worker")?.map(Instance::from),
                out_at: batch.optional_time("out_at")?,
                settled_at: batch.time("due")?,
                took_ms: batch.optional_count("took_ms")?,
                verdict: COMPLETED.to_owned(),
                error: None,
            });
        }
        Ok(history)
    }
}
