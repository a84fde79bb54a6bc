//! Dispatch's part of the ledger in PostgreSQL.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, PipelineName};
use uuid::Uuid;

use super::write::{lock_known, write_tally};
use super::{PostgresLedger, batch_uuid, bounded, run_uuid};
use crate::ledger::record::page;
use crate::ledger::row::{Cells, signed};
use crate::ledger::{
    Backlog, BacklogId, DispatchLedger, LedgerError, OutBatch, Page, PendingBatch, group,
};

/// The first pending batch of each running run, and then of the next key, and the next: one step in the
/// index for each, however many batches it has.
pub(super) const HEADS: &str = "WITH RECURSIVE heads AS ( \
     SELECT b.* FROM runs r CROSS JOIN LATERAL ( \
         SELECT run, pipeline, key, due, r.priority FROM batches WHERE state = 0 AND run = r.id \
         ORDER BY pipeline, key, due, id LIMIT 1) b \
     WHERE r.state = 'running' AND ($1::uuid IS NULL OR r.id = $1) \
     UNION ALL \
     SELECT b.* FROM heads h CROSS JOIN LATERAL ( \
         SELECT run, pipeline, key, due, h.priority FROM batches WHERE state = 0 AND run = h.run \
         AND (pipeline, key) > (h.pipeline, h.key) ORDER BY pipeline, key, due, id LIMIT 1) b) \
     SELECT * FROM heads";

#[async_trait]
impl DispatchLedger for PostgresLedger {
    async fn backlogs(&self, run: Option<RunId>) -> Result<Vec<Backlog>, LedgerError> {
        bounded(async {
            let rows = sqlx::query(HEADS)
                .bind(run.map(run_uuid))
                .fetch_all(&self.pool)
                .await?;
            rows.iter().map(|row| Cells::batches(row).head()).collect()
        })
        .await
    }

    async fn doubted(&self) {
        self.doubts.notified().await;
    }

    async fn outs(&self) -> Result<Vec<OutBatch>, LedgerError> {
        bounded(async {
            let rows = sqlx::query("SELECT id, pipeline, key FROM batches WHERE state = 1")
                .fetch_all(&self.pool)
                .await?;
            rows.iter()
                .map(|row| Cells::batches(row).out_batch())
                .collect()
        })
        .await
    }

    async fn read_pending(
        &self,
        backlog: &BacklogId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Page, LedgerError> {
        bounded(async {
            // One more than asked for: whether it exists, and when it is due, says when to read again.
            let rows = sqlx::query(
                "SELECT b.id, b.attempt, b.bytes, b.due FROM runs r JOIN batches b ON b.run = r.id \
                 WHERE b.state = 0 AND r.id = $1 AND r.state = 'running' AND b.pipeline = $2 AND b.key = $3 \
                 ORDER BY b.due, b.id LIMIT $4",
            )
            .bind(run_uuid(backlog.run))
            .bind(backlog.pipeline.as_str())
            .bind(backlog.key.as_str())
            .bind(i64::from(limit) + 1)
            .fetch_all(&self.pool)
            .await?;
            page(&rows, now, limit)
        })
        .await
    }

    async fn payloads(
        &self,
        batches: &[&PendingBatch],
    ) -> Result<Vec<Option<Box<RawValue>>>, LedgerError> {
        bounded(async {
            let ids: Vec<Uuid> = batches.iter().map(|batch| batch_uuid(batch.id)).collect();
            let rows = sqlx::query(
                "WITH b AS MATERIALIZED (\
                     SELECT b.id, b.run, b.state, b.attempt FROM UNNEST($1::uuid[]) AS u (id) \
                     JOIN batches b ON b.id = u.id) \
                 SELECT b.id, b.attempt, p.body FROM b JOIN payloads p ON p.batch = b.id \
                 JOIN runs r ON r.id = b.run AND r.state = 'running' WHERE b.state = 0",
            )
            .bind(ids)
            .fetch_all(&self.pool)
            .await?;
            let mut found = HashMap::with_capacity(rows.len());
            for row in &rows {
                let cells = Cells::batches(row);
                let attempt = (cells.batch_id("id")?, cells.attempt("attempt")?);
                found.insert(attempt, cells.of("payloads").json("body")?);
            }
            Ok(batches
                .iter()
                .map(|batch| found.remove(&(batch.id, batch.attempt)))
                .collect())
        })
        .await
    }

    async fn record_out(
        &self,
        dispatched: &[(BatchId, Attempt)],
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        bounded(async {
            let mut transaction = self.begin().await?;
            let ids: Vec<Uuid> = dispatched.iter().map(|(id, _)| batch_uuid(*id)).collect();
            let known = lock_known(&mut transaction, &ids).await?;
            let (out, tally) = group::record_out(&known, dispatched);
            let out: Vec<Uuid> = out.into_iter().map(batch_uuid).collect();
            // An attempt that goes out is always the one after the stored one: `record_out` said so.
            sqlx::query(
                "UPDATE batches SET state = 1, attempt = attempt + 1, due = $1, reason = NULL, error = NULL \
                 WHERE id = ANY($2)",
            )
            .bind(now.as_millisecond())
            .bind(out)
            .execute(&mut *transaction)
            .await?;
            write_tally(&mut transaction, &tally, now).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    async fn waiting(&self, pipeline: &PipelineName, enough: u64) -> Result<u64, LedgerError> {
        bounded(async {
            let row = sqlx::query(
                "SELECT count(*) AS waiting FROM (SELECT 1 FROM runs r JOIN batches b ON b.run = r.id \
                 WHERE r.state = 'running' AND b.pipeline = $1 AND b.state = 0 LIMIT $2) b",
            )
            .bind(pipeline.as_str())
            .bind(signed(enough))
            .fetch_one(&self.pool)
            .await?;
            Cells::batches(&row).count("waiting")
        })
        .await
    }
}
