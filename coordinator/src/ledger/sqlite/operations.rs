//! The operators' part of the ledger in SQLite.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::RunId;
use shared::name::PipelineName;

use super::SqliteLedger;
use super::write::write_tally;
use crate::ledger::row::Cells;
use crate::ledger::tally::Tally;
use crate::ledger::transition::State;
use crate::ledger::{DeadFilter, LedgerError, OperationsLedger, Redriven};
use crate::run::{Priority, Run};

#[async_trait]
impl OperationsLedger for SqliteLedger {
    async fn cancel(&self, run: RunId, now: Timestamp) -> Result<Option<Run>, LedgerError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE runs SET state = 'cancelled' WHERE id = ? AND state IN ('running', 'paused')",
        )
        .bind(run.as_bytes().as_slice())
        .execute(&mut *transaction)
        .await?;
        // Finishes it if nothing of it is pending or out.
        let mut tally = Tally::default();
        tally.run(run);
        write_tally(&mut transaction, &tally, now).await?;
        transaction.commit().await?;
        self.read_run(run).await
    }

    async fn cancel_pending(
        &self,
        run: RunId,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, LedgerError> {
        let mut transaction = self.begin().await?;
        // By due time, which is nearly the order of the rows: one page after the other is changed.
        let cancelled = sqlx::query(
            "UPDATE batches SET state = 4, due = ?3 WHERE seq IN (SELECT b.seq FROM runs r \
             CROSS JOIN batches b INDEXED BY batches_due ON b.run = r.id AND b.state = 0 \
             WHERE r.id = ?1 AND r.state = 'cancelled' ORDER BY b.due LIMIT ?2) RETURNING pipeline",
        )
        .bind(run.as_bytes().as_slice())
        .bind(limit)
        .bind(now.as_millisecond())
        .fetch_all(&mut *transaction)
        .await?;
        let mut tally = Tally::default();
        for row in &cancelled {
            let pipeline = Cells::batches(row).pipeline("pipeline")?;
            tally.moved(run, &pipeline, State::Pending, State::Cancelled, 1);
        }
        write_tally(&mut transaction, &tally, now).await?;
        transaction.commit().await?;
        Ok(cancelled.len() as u64)
    }

    async fn cancelling(&self) -> Result<Vec<RunId>, LedgerError> {
        let rows = sqlx::query(
            "SELECT id FROM runs WHERE state = 'cancelled' AND finished_at IS NULL ORDER BY id",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| Cells::runs(row).run_id("id"))
            .collect()
    }

    async fn pause(&self, run: RunId, paused: bool) -> Result<Option<Run>, LedgerError> {
        let (from, to) = if paused {
            ("running", "paused")
        } else {
            ("paused", "running")
        };
        sqlx::query("UPDATE runs SET state = ? WHERE id = ? AND state = ?")
            .bind(to)
            .bind(run.as_bytes().as_slice())
            .bind(from)
            .execute(&self.writer)
            .await?;
        self.read_run(run).await
    }

    async fn prioritize(&self, run: RunId, priority: Priority) -> Result<Option<Run>, LedgerError> {
        sqlx::query(
            "UPDATE runs SET priority = ? WHERE id = ? AND finished_at IS NULL AND state <> 'submitting'",
        )
        .bind(priority.as_str())
        .bind(run.as_bytes().as_slice())
        .execute(&self.writer)
        .await?;
        self.read_run(run).await
    }

    async fn paused_pipelines(&self) -> Result<BTreeSet<PipelineName>, LedgerError> {
        let rows = sqlx::query("SELECT name FROM pipelines WHERE paused = 1")
            .fetch_all(&self.readers)
            .await?;
        let read = |row| Cells::new("pipelines", row).pipeline("name");
        rows.iter().map(read).collect()
    }

    async fn pause_pipeline(
        &self,
        pipeline: &PipelineName,
        paused: bool,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "INSERT INTO pipelines (name, paused) VALUES (?, ?) \
             ON CONFLICT (name) DO UPDATE SET paused = excluded.paused",
        )
        .bind(pipeline.as_str())
        .bind(paused)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn redrive(
        &self,
        filter: &DeadFilter,
        limit: u32,
        from: Timestamp,
        spacing: Duration,
    ) -> Result<Redriven, LedgerError> {
        self.redrive_dead(filter, limit, from, spacing).await
    }

    async fn discard(
        &self,
        filter: &DeadFilter,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, LedgerError> {
        self.discard_dead(filter, limit, now).await
    }
}
