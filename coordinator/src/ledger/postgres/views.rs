//! What people ask of the ledger, in PostgreSQL.

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};

use super::{PostgresLedger, batch_uuid, bounded, run_uuid};
use crate::ledger::group::KEPT_ATTEMPTS;
use crate::ledger::row::{Cells, state_number};
use crate::ledger::{DeadFilter, LedgerError, LedgerViews, OperatorViews};
use crate::run::{BatchDetail, BatchState, BatchSummary, DeadBatch, PipelineCounts, Run, RunState};

#[async_trait]
impl LedgerViews for PostgresLedger {
    async fn run(&self, run: RunId) -> Result<Option<Run>, LedgerError> {
        bounded(self.read_run(run)).await
    }

    async fn runs(
        &self,
        state: Option<RunState>,
        before: Option<RunId>,
        limit: u32,
    ) -> Result<Vec<Run>, LedgerError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("SELECT * FROM runs WHERE state ");
            match state {
                Some(state) => query.push("= ").push_bind(state.as_str()),
                None => query.push("<> 'submitting'"),
            };
            if let Some(before) = before {
                query.push(" AND id < ").push_bind(run_uuid(before));
            }
            query
                .push(" ORDER BY id DESC LIMIT ")
                .push_bind(i64::from(limit));
            let rows = query.build().fetch_all(&self.pool).await?;
            let mut runs = Vec::with_capacity(rows.len());
            for row in &rows {
                runs.push(self.with_statistics(Cells::runs(row).run()?).await?);
            }
            Ok(runs)
        })
        .await
    }

    async fn dead(&self, filter: &DeadFilter, limit: u32) -> Result<Vec<DeadBatch>, LedgerError> {
        bounded(self.list_dead(filter, limit)).await
    }
}

#[async_trait]
impl OperatorViews for PostgresLedger {
    async fn count_dead(&self, filter: &DeadFilter) -> Result<u64, LedgerError> {
        bounded(self.number_of_dead(filter)).await
    }

    async fn batch(&self, batch: BatchId) -> Result<Option<BatchDetail>, LedgerError> {
        bounded(async {
            let row = sqlx::query(
                "SELECT b.*, p.body FROM batches b JOIN payloads p ON p.batch = b.id \
                 JOIN runs r ON r.id = b.run WHERE b.id = $1 AND r.state <> 'submitting'",
            )
            .bind(batch_uuid(batch))
            .fetch_optional(&self.pool)
            .await?;
            let Some(row) = row else { return Ok(None) };
            let attempts = self.read_attempts(batch).await?;
            let cells = Cells::batches(&row);
            let history = cells.history(&attempts)?;
            cells.detail(history).map(Some)
        })
        .await
    }

    async fn batches(
        &self,
        run: RunId,
        state: Option<BatchState>,
        after: Option<BatchId>,
        limit: u32,
    ) -> Result<Vec<BatchSummary>, LedgerError> {
        bounded(self.list_batches(run, state, after, limit)).await
    }

    async fn pipelines(&self) -> Result<Vec<PipelineCounts>, LedgerError> {
        bounded(async {
            let rows = sqlx::query(
                "SELECT name, pending, out FROM pipelines WHERE pending <> 0 OR out <> 0 \
                 ORDER BY name COLLATE \"C\"",
            )
            .fetch_all(&self.pool)
            .await?;
            let read = |row| Cells::new("pipelines", row).pipeline_counts();
            rows.iter().map(read).collect()
        })
        .await
    }

    async fn oldest_due(&self, now: Timestamp) -> Result<Option<Timestamp>, LedgerError> {
        bounded(async {
            let row = sqlx::query(
                "SELECT min(b.due) AS due FROM runs r CROSS JOIN LATERAL ( \
                     SELECT due FROM batches WHERE state = 0 AND run = r.id ORDER BY due LIMIT 1) b \
                 WHERE r.state = 'running'",
            )
            .fetch_one(&self.pool)
            .await?;
            let due = Cells::batches(&row).optional_time("due")?;
            Ok(due.filter(|due| *due <= now))
        })
        .await
    }
}

impl PostgresLedger {
    pub(super) async fn read_run(&self, run: RunId) -> Result<Option<Run>, LedgerError> {
        let row = sqlx::query("SELECT * FROM runs WHERE id = $1 AND state <> 'submitting'")
            .bind(run_uuid(run))
            .fetch_optional(&self.pool)
            .await?;
        match row {
            Some(row) => Ok(Some(self.with_statistics(Cells::runs(&row).run()?).await?)),
            None => Ok(None),
        }
    }

    pub(super) async fn with_statistics(&self, mut run: Run) -> Result<Run, LedgerError> {
        let rows = sqlx::query("SELECT name, value FROM run_statistics WHERE run = $1")
            .bind(run_uuid(run.run))
            .fetch_all(&self.pool)
            .await?;
        for row in &rows {
            let cells = Cells::new("run_statistics", row);
            run.statistics
                .insert(cells.text("name")?, cells.count("value")?);
        }
        Ok(run)
    }

    /// The attempts of a batch that are kept apart, newest first.
    async fn read_attempts(&self, batch: BatchId) -> Result<Vec<PgRow>, LedgerError> {
        let rows = sqlx::query(
            "SELECT * FROM attempts WHERE batch = $1 ORDER BY attempt DESC, settled_at DESC LIMIT $2",
        )
        .bind(batch_uuid(batch))
        .bind(i64::from(KEPT_ATTEMPTS))
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }

    async fn list_batches(
        &self,
        run: RunId,
        state: Option<BatchState>,
        after: Option<BatchId>,
        limit: u32,
    ) -> Result<Vec<BatchSummary>, LedgerError> {
        let mut query = QueryBuilder::<Postgres>::new(
            "SELECT b.id, b.pipeline, b.key, b.state, b.attempt, b.due \
             FROM runs r JOIN batches b ON b.run = r.id WHERE r.state <> 'submitting' AND r.id = ",
        );
        query.push_bind(run_uuid(run));
        if let Some(state) = state {
            // Spelled out, so that the partial indexes are seen to fit.
            query.push(" AND b.state = ").push(state_number(state));
        }
        if let Some(after) = after {
            query.push(" AND b.id > ").push_bind(batch_uuid(after));
        }
        query
            .push(" ORDER BY b.id LIMIT ")
            .push_bind(i64::from(limit));
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| Cells::batches(row).summary())
            .collect()
    }
}
