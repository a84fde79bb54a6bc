//! What people ask of the ledger, in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite};

use super::SqliteLedger;
use crate::ledger::group::KEPT_ATTEMPTS;
use crate::ledger::row::{Cells, state_number};
use crate::ledger::{DeadFilter, LedgerError, LedgerViews, OperatorViews};
use crate::run::{BatchDetail, BatchState, BatchSummary, DeadBatch, PipelineCounts, Run, RunState};

#[async_trait]
impl LedgerViews for SqliteLedger {
    async fn run(&self, run: RunId) -> Result<Option<Run>, LedgerError> {
        self.read_run(run).await
    }

    async fn runs(
        &self,
        state: Option<RunState>,
        before: Option<RunId>,
        limit: u32,
    ) -> Result<Vec<Run>, LedgerError> {
        // Two statements: only then does each have its index.
        let query = match state {
            Some(state) => sqlx::query(
                "SELECT * FROM runs WHERE state = ? AND id < ? ORDER BY id DESC LIMIT ?",
            )
            .bind(state.as_str()),
            None => sqlx::query(
                "SELECT * FROM runs WHERE state <> 'submitting' AND id < ? ORDER BY id DESC LIMIT ?",
            ),
        };
        // No id is larger than this.
        let before = before.map_or([u8::MAX; 16], |run| *run.as_bytes());
        let query = query.bind(before.to_vec());
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
        let attempts = self.read_attempts(&row).await?;
        let cells = Cells::batches(&row);
        let history = cells.history(&attempts)?;
        cells.detail(history).map(Some)
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
        rows.iter()
            .map(|row| Cells::batches(row).summary())
            .collect()
    }

    async fn pipelines(&self) -> Result<Vec<PipelineCounts>, LedgerError> {
        let rows = sqlx::query(
            "SELECT name, pending, out FROM pipelines WHERE pending <> 0 OR out <> 0 ORDER BY name",
        )
        .fetch_all(&self.readers)
        .await?;
        let read = |row| Cells::new("pipelines", row).pipeline_counts();
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

    /// The attempts of a batch that are kept apart, newest first.
    async fn read_attempts(&self, batch: &SqliteRow) -> Result<Vec<SqliteRow>, LedgerError> {
        let rows = sqlx::query(
            "SELECT * FROM attempts WHERE batch = ? ORDER BY attempt DESC, settled_at DESC LIMIT ?",
        )
        .bind(Cells::batches(batch).seq()?)
        .bind(KEPT_ATTEMPTS)
        .fetch_all(&self.readers)
        .await?;
        Ok(rows)
    }
}
