//! Dispatch's part of the ledger in SQLite.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, PipelineName};
use sqlx::{QueryBuilder, Sqlite};

use super::settlement::read_known;
use super::write::write_tally;
use super::{SqliteLedger, id_array};
use crate::ledger::record::page;
use crate::ledger::row::Cells;
use crate::ledger::{
    Backlog, BacklogId, DispatchLedger, LedgerError, OutBatch, Page, PendingBatch, group,
};

/// The first pending batch of each running run …
const HEADS_OF_RUNS: &str = "WITH RECURSIVE heads(run, pipeline, key, due, priority) AS ( \
     SELECT b.run, b.pipeline, b.key, b.due, r.priority FROM runs r CROSS JOIN batches b \
     ON b.seq = (SELECT seq FROM batches WHERE state = 0 AND run = r.id ORDER BY pipeline, key, due, seq LIMIT 1) \
     WHERE r.state = 'running'";
/// … and then of the next key, and the next: one step in the index for each, however many batches it has.
/// With a plus, a column is a plain value; otherwise SQLite steps by the pipeline alone, through every batch.
const HEADS_OF_KEYS: &str = " UNION ALL \
     SELECT b.run, b.pipeline, b.key, b.due, h.priority FROM heads h CROSS JOIN batches b \
     ON b.seq = (SELECT seq FROM batches WHERE state = 0 AND run = h.run AND (pipeline, key) > (+h.pipeline, +h.key) \
     ORDER BY pipeline, key, due, seq LIMIT 1)) \
     SELECT * FROM heads";

#[async_trait]
impl DispatchLedger for SqliteLedger {
    async fn backlogs(&self, run: Option<RunId>) -> Result<Vec<Backlog>, LedgerError> {
        let mut query = QueryBuilder::<Sqlite>::new(HEADS_OF_RUNS);
        if let Some(run) = run {
            query
                .push(" AND r.id = ")
                .push_bind(run.as_bytes().to_vec());
        }
        query.push(HEADS_OF_KEYS);
        let rows = query.build().fetch_all(&self.readers).await?;
        rows.iter().map(|row| Cells::batches(row).head()).collect()
    }

    /// Never: the database is in this process, which waits for its answers.
    async fn doubted(&self) {
        std::future::pending::<()>().await;
    }

    async fn outs(&self) -> Result<Vec<OutBatch>, LedgerError> {
        let rows = sqlx::query("SELECT id, pipeline, key FROM batches WHERE state = 1")
            .fetch_all(&self.readers)
            .await?;
        rows.iter()
            .map(|row| Cells::batches(row).out_batch())
            .collect()
    }

    async fn read_pending(
        &self,
        backlog: &BacklogId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Page, LedgerError> {
        // One more than asked for: whether it exists, and when it is due, says when to read again. SQLite
        // plans a query again whenever another number is bound to a bare LIMIT, hence the sum.
        let rows = sqlx::query(
            "SELECT b.id, b.attempt, b.bytes, b.due FROM runs r CROSS JOIN batches b ON b.run = r.id \
             WHERE b.state = 0 AND r.id = ? AND r.state = 'running' AND b.pipeline = ? AND b.key = ? \
             ORDER BY b.due, b.seq LIMIT ? + 1",
        )
        .bind(backlog.run.as_bytes().as_slice())
        .bind(backlog.pipeline.as_str())
        .bind(backlog.key.as_str())
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        page(&rows, now, limit)
    }

    async fn payloads(
        &self,
        batches: &[&PendingBatch],
    ) -> Result<Vec<Option<Box<RawValue>>>, LedgerError> {
        let rows = sqlx::query(
            "SELECT b.id, b.attempt, p.body FROM json_each(?) j \
             CROSS JOIN batches b ON b.id = unhex(j.value) AND b.state = 0 \
             CROSS JOIN runs r ON r.id = b.run AND r.state = 'running' \
             CROSS JOIN payloads p ON p.seq = b.seq",
        )
        .bind(id_array(batches.iter().map(|batch| &batch.id)))
        .fetch_all(&self.readers)
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
    }

    async fn record_out(
        &self,
        dispatched: &[(BatchId, Attempt)],
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let mut transaction = self.begin().await?;
        let known = read_known(&mut transaction, dispatched.iter().map(|(id, _)| id)).await?;
        let (out, tally) = group::record_out(&known, dispatched);
        // An attempt that goes out is always the one after the stored one: `record_out` said so.
        sqlx::query(
            "UPDATE batches SET state = 1, attempt = attempt + 1, due = ?, reason = NULL, error = NULL \
             WHERE seq IN (SELECT value FROM json_each(?))",
        )
        .bind(now.as_millisecond())
        .bind(serde_json::json!(out).to_string())
        .execute(&mut *transaction)
        .await?;
        write_tally(&mut transaction, &tally, now).await?;
        Ok(transaction.commit().await?)
    }

    async fn waiting(&self, pipeline: &PipelineName, enough: u64) -> Result<u64, LedgerError> {
        let row = sqlx::query(
            "SELECT count(*) AS waiting FROM (SELECT 1 FROM runs r CROSS JOIN batches b \
             ON b.run = r.id AND b.pipeline = ? AND b.state = 0 WHERE r.state = 'running' LIMIT ?)",
        )
        .bind(pipeline.as_str())
        .bind(i64::try_from(enough).unwrap_or(i64::MAX))
        .fetch_one(&self.readers)
        .await?;
        Cells::batches(&row).count("waiting")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn backlogs_are_found_by_steps_in_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(&folder.path().join("ledger.db"))
            .await
            .unwrap();
        let query = format!("EXPLAIN QUERY PLAN {HEADS_OF_RUNS} {HEADS_OF_KEYS}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .fetch_all(&ledger.readers)
            .await
            .unwrap();
        let plan: Vec<_> = rows
            .iter()
            .map(|row| Cells::batches(row).text("detail").unwrap())
            .collect();
        let step = "batches_pending (run=? AND (pipeline,key)>(?,?))";
        assert!(plan.iter().any(|line| line.contains(step)), "{plan:#?}");
    }
}
