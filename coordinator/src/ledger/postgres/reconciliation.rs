//! Reconciliation's part of the ledger in PostgreSQL.

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::BatchId;
use shared::name::{Attempt, Instance};

use super::{PostgresLedger, batch_uuid, bounded};
use crate::ledger::group::storable;
use crate::ledger::row::Cells;
use crate::ledger::{LedgerError, OutSince, ReconciliationLedger, Suspect};

#[async_trait]
impl ReconciliationLedger for PostgresLedger {
    async fn out_since(&self, before: Timestamp, limit: u32) -> Result<Vec<OutSince>, LedgerError> {
        bounded(async {
            let rows = sqlx::query(
                "SELECT id, pipeline, key, attempt, due FROM batches WHERE state = 1 AND due < $1 \
                 ORDER BY due, id LIMIT $2",
            )
            .bind(before.as_millisecond())
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
            rows.iter()
                .map(|row| Cells::batches(row).out_since())
                .collect()
        })
        .await
    }

    async fn suspect(&self, batch: BatchId) -> Result<Option<Suspect>, LedgerError> {
        bounded(async {
            let row = sqlx::query(
                "SELECT b.id, b.state, b.attempt, b.failures, b.releases, b.deaths, b.alone_on, \
                 r.state AS run_state \
                 FROM batches b JOIN runs r ON r.id = b.run WHERE b.id = $1 AND r.state <> 'submitting'",
            )
            .bind(batch_uuid(batch))
            .fetch_optional(&self.pool)
            .await?;
            row.map(|row| Cells::batches(&row).suspect()).transpose()
        })
        .await
    }

    async fn suspected(
        &self,
        batch: BatchId,
        attempt: Attempt,
        deaths: u32,
        alone_on: Option<&Instance>,
    ) -> Result<(), LedgerError> {
        // Out, or about to be recorded as that.
        let change = sqlx::query(
            "UPDATE batches SET deaths = $1, alone_on = $2 WHERE id = $3 \
             AND (state = 1 AND attempt = $4 OR state = 0 AND attempt = $4 - 1)",
        )
        .bind(i64::from(deaths))
        .bind(alone_on.map(|worker| storable(worker.as_str())))
        .bind(batch_uuid(batch))
        .bind(i64::from(attempt.number()));
        bounded(self.write(change)).await
    }
}
