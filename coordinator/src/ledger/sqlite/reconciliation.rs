//! Reconciliation's part of the ledger in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::BatchId;
use shared::name::{Attempt, Instance};

use super::SqliteLedger;
use crate::ledger::group::storable;
use crate::ledger::row::Cells;
use crate::ledger::{LedgerError, OutSince, ReconciliationLedger, Suspect};

#[async_trait]
impl ReconciliationLedger for SqliteLedger {
    async fn out_since(&self, before: Timestamp, limit: u32) -> Result<Vec<OutSince>, LedgerError> {
        // Windows bound what is out, so sorting it is cheap.
        let rows = sqlx::query(
            "SELECT id, pipeline, key, attempt, due FROM batches WHERE state = 1 AND due < ? \
             ORDER BY due, seq LIMIT ?",
        )
        .bind(before.as_millisecond())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| Cells::batches(row).out_since())
            .collect()
    }

    async fn suspect(&self, batch: BatchId) -> Result<Option<Suspect>, LedgerError> {
        let row = sqlx::query(
            "SELECT b.id, b.state, b.attempt, b.failures, b.releases, b.deaths, b.alone_on, r.state AS run_state \
             FROM batches b JOIN runs r ON r.id = b.run WHERE b.id = ? AND r.state <> 'submitting'",
        )
        .bind(batch.as_bytes().as_slice())
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| Cells::batches(&row).suspect()).transpose()
    }

    async fn suspected(
        &self,
        batch: BatchId,
        attempt: Attempt,
        deaths: u32,
        alone_on: Option<&Instance>,
    ) -> Result<(), LedgerError> {
        // Out, or about to be recorded as that.
        sqlx::query(
            "UPDATE batches SET deaths = ?1, alone_on = ?2 WHERE id = ?3 \
             AND (state = 1 AND attempt = ?4 OR state = 0 AND attempt = ?4 - 1)",
        )
        .bind(deaths)
        .bind(alone_on.map(|worker| storable(worker.as_str())))
        .bind(batch.as_bytes().as_slice())
        .bind(attempt.number())
        .execute(&self.writer)
        .await?;
        Ok(())
    }
}
