//! The operators' part of the ledger in PostgreSQL.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::RunId;
use shared::name::PipelineName;
use sqlx::query::Query;
use sqlx::{Postgres, Row};

use super::write::write_tally;
use super::{PostgresLedger, bounded, run_uuid};
use crate::ledger::row::Cells;
use crate::ledger::tally::Tally;
use crate::ledger::transition::State;
use crate::ledger::{DeadFilter, LedgerError, OperationsLedger, Redriven};
use crate::run::{Priority, Run};

#[async_trait]
impl OperationsLedger for PostgresLedger {
    async fn cancel(&self, run: RunId, now: Timestamp) -> Result<Option<Run>, LedgerError> {
        bounded(async {
            let mut transaction = self.begin().await?;
            sqlx::query(
                "UPDATE runs SET state = 'cancelled' WHERE id = $1 AND state IN ('running', 'paused')",
            )
            .bind(run_uuid(run))
            .execute(&mut *transaction)
            .await?;
            // Finishes it if nothing of it is pending or out.
            let mut tally = Tally::default();
            tally.run(run);
            write_tally(&mut transaction, &tally, now).await?;
            transaction.commit().await?;
            self.read_run(run).await
        })
        .await
    }

    async fn cancel_pending(
        &self,
        run: RunId,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, LedgerError> {
        bounded(async {
            let mut transaction = self.begin().await?;
            sqlx::query("SELECT 1 FROM runs WHERE id = $1 FOR NO KEY UPDATE")
                .bind(run_uuid(run))
                .execute(&mut *transaction)
                .await?;
            let cancelled = sqlx::query(
                "WITH cancelled AS (UPDATE batches SET state = 4, due = $3 WHERE id IN ( \
                     SELECT b.id FROM runs r JOIN batches b ON b.run = r.id AND b.state = 0 \
                     WHERE r.id = $1 AND r.state = 'cancelled' LIMIT $2) RETURNING pipeline) \
                 SELECT pipeline, count(*) AS batches FROM cancelled GROUP BY pipeline",
            )
            .bind(run_uuid(run))
            .bind(i64::from(limit))
            .bind(now.as_millisecond())
            .fetch_all(&mut *transaction)
            .await?;
            let mut tally = Tally::default();
            for row in &cancelled {
                let pipeline = Cells::batches(row).pipeline("pipeline")?;
                let batches = row.try_get("batches")?;
                tally.moved(run, &pipeline, State::Pending, State::Cancelled, batches);
            }
            write_tally(&mut transaction, &tally, now).await?;
            transaction.commit().await?;
            let count = |row| Cells::batches(row).count("batches");
            cancelled.iter().map(count).sum()
        })
        .await
    }

    async fn cancelling(&self) -> Result<Vec<RunId>, LedgerError> {
        bounded(async {
            let rows = sqlx::query(
                "SELECT id FROM runs WHERE state = 'cancelled' AND finished_at IS NULL ORDER BY id",
            )
            .fetch_all(&self.pool)
            .await?;
            let read = |row| Cells::runs(row).run_id("id");
            rows.iter().map(read).collect()
        })
        .await
    }

    async fn pause(&self, run: RunId, paused: bool) -> Result<Option<Run>, LedgerError> {
        let (from, to) = if paused {
            ("running", "paused")
        } else {
            ("paused", "running")
        };
        bounded(async {
            let change = sqlx::query("UPDATE runs SET state = $1 WHERE id = $2 AND state = $3")
                .bind(to)
                .bind(run_uuid(run))
                .bind(from);
            self.write(change).await?;
            self.read_run(run).await
        })
        .await
    }

    async fn prioritize(&self, run: RunId, priority: Priority) -> Result<Option<Run>, LedgerError> {
        bounded(async {
            let change = sqlx::query(
                "UPDATE runs SET priority = $1 \
                 WHERE id = $2 AND finished_at IS NULL AND state <> 'submitting'",
            )
            .bind(priority.as_str())
            .bind(run_uuid(run));
            self.write(change).await?;
            self.read_run(run).await
        })
        .await
    }

    async fn paused_pipelines(&self) -> Result<BTreeSet<PipelineName>, LedgerError> {
        bounded(async {
            let rows = sqlx::query("SELECT name FROM pipelines WHERE paused")
                .fetch_all(&self.pool)
                .await?;
            let read = |row| Cells::new("pipelines", row).pipeline("name");
            rows.iter().map(read).collect()
        })
        .await
    }

    async fn pause_pipeline(
        &self,
        pipeline: &PipelineName,
        paused: bool,
    ) -> Result<(), LedgerError> {
        let change = sqlx::query(
            "INSERT INTO pipelines (name, paused) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET paused = excluded.paused",
        )
        .bind(pipeline.as_str())
        .bind(paused);
        bounded(self.write(change)).await
    }

    async fn redrive(
        &self,
        filter: &DeadFilter,
        limit: u32,
        from: Timestamp,
        spacing: Duration,
    ) -> Result<Redriven, LedgerError> {
        bounded(self.redrive_dead(filter, limit, from, spacing)).await
    }

    async fn discard(
        &self,
        filter: &DeadFilter,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, LedgerError> {
        bounded(self.discard_dead(filter, limit, now)).await
    }
}

impl PostgresLedger {
    /// Writes one statement, if the ledger is ours.
    pub(super) async fn write(
        &self,
        statement: Query<'_, Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<(), LedgerError> {
        let mut transaction = self.begin().await?;
        statement.execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}
