//! Dispatch's part of the ledger in SQLite.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::Attempt;
use sqlx::Row;

use super::row::{Cells, state_number};
use super::{SqliteLedger, id_array};
use crate::ledger::transition::{self, State};
use crate::ledger::{
    Backlog, BacklogId, DispatchLedger, LedgerError, OutBatch, Page, PendingBatch,
};

#[async_trait]
impl DispatchLedger for SqliteLedger {
    async fn backlogs(&self, run: Option<RunId>) -> Result<Vec<Backlog>, LedgerError> {
        // Two statements: with one, a new run of a single batch would cost a scan of everything pending.
        let rows = match run {
            Some(run) => {
                sqlx::query(
                    "SELECT b.run, b.pipeline, b.key, r.priority, min(b.due) AS due \
                     FROM runs r JOIN batches b ON b.run = r.id AND b.state = 0 \
                     WHERE r.state = 'running' AND r.id = ? GROUP BY b.run, b.pipeline, b.key",
                )
                .bind(run.as_bytes().to_vec())
                .fetch_all(&self.readers)
                .await?
            }
            None => {
                sqlx::query(
                    "SELECT b.run, b.pipeline, b.key, r.priority, min(b.due) AS due \
                     FROM runs r JOIN batches b ON b.run = r.id AND b.state = 0 \
                     WHERE r.state = 'running' GROUP BY b.run, b.pipeline, b.key",
                )
                .fetch_all(&self.readers)
                .await?
            }
        };
        let read = |row| {
            let cells = Cells {
                table: "batches",
                row,
            };
            let id = BacklogId {
                run: cells.run_id("run")?,
                pipeline: cells.pipeline("pipeline")?,
                key: cells.key("key")?,
            };
            Ok(Backlog {
                id,
                priority: cells.word("priority")?,
                due: cells.time("due")?,
            })
        };
        rows.iter().map(read).collect()
    }

    async fn outs(&self) -> Result<Vec<OutBatch>, LedgerError> {
        let rows = sqlx::query("SELECT id, pipeline, key FROM batches WHERE state = 1")
            .fetch_all(&self.readers)
            .await?;
        let read = |row| {
            let cells = Cells {
                table: "batches",
                row,
            };
            Ok(OutBatch {
                id: cells.batch_id("id")?,
                pipeline: cells.pipeline("pipeline")?,
                key: cells.key("key")?,
            })
        };
        rows.iter().map(read).collect()
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
            "SELECT id, attempt, bytes, due FROM batches \
             WHERE state = 0 AND run = ? AND pipeline = ? AND key = ? ORDER BY due, seq LIMIT ? + 1",
        )
        .bind(backlog.run.as_bytes().as_slice())
        .bind(backlog.pipeline.as_str())
        .bind(backlog.key.as_str())
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let mut page = Page {
            batches: Vec::with_capacity(rows.len()),
            more_due: None,
        };
        for row in &rows {
            let cells = Cells {
                table: "batches",
                row,
            };
            let due = cells.time("due")?;
            if due > now || page.batches.len() == limit as usize {
                page.more_due = Some(due);
                break;
            }
            page.batches.push(PendingBatch {
                id: cells.batch_id("id")?,
                attempt: Attempt::new(cells.small_count("attempt")?),
                bytes: cells.small_count("bytes")?,
            });
        }
        Ok(page)
    }

    async fn payloads(
        &self,
        batches: &[&PendingBatch],
    ) -> Result<Vec<Option<Box<RawValue>>>, LedgerError> {
        let rows = sqlx::query(
            "SELECT b.id, b.attempt, p.body FROM json_each(?) j \
             CROSS JOIN batches b ON b.id = unhex(j.value) AND b.state = 0 \
             CROSS JOIN payloads p ON p.seq = b.seq",
        )
        .bind(id_array(batches.iter().map(|batch| &batch.id)))
        .fetch_all(&self.readers)
        .await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let cells = Cells {
                table: "batches",
                row,
            };
            let attempt = Attempt::new(cells.small_count("attempt")?);
            let body: String = row.try_get("body")?;
            let payload = RawValue::from_string(body).map_err(|error| LedgerError::Damaged {
                table: "payloads",
                column: "body",
                value: error.to_string(),
            })?;
            found.insert((cells.batch_id("id")?, attempt), payload);
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
        let attempts: HashMap<BatchId, Attempt> = dispatched.iter().copied().collect();
        let mut transaction = self.begin().await?;
        let rows = sqlx::query(
            "SELECT b.id, b.run, b.state, b.attempt, b.failures, b.releases \
             FROM json_each(?) j CROSS JOIN batches b ON b.id = unhex(j.value)",
        )
        .bind(id_array(attempts.keys()))
        .fetch_all(&mut *transaction)
        .await?;
        let mut out = Vec::with_capacity(rows.len());
        let mut per_run: HashMap<RunId, i64> = HashMap::new();
        for row in &rows {
            let cells = Cells {
                table: "batches",
                row,
            };
            let id = cells.batch_id("id")?;
            let stored = cells.stored()?;
            if transition::record_out(&stored, attempts[&id]).is_some() {
                out.push(id);
                *per_run.entry(cells.run_id("run")?).or_default() += 1;
            }
        }
        // An attempt that goes out is always the one after the stored one: `record_out` said so.
        sqlx::query(
            "UPDATE batches SET state = ?, attempt = attempt + 1, due = ?, reason = NULL, error = NULL \
             WHERE id IN (SELECT unhex(value) FROM json_each(?))",
        )
        .bind(state_number(State::Out))
        .bind(now.as_millisecond())
        .bind(id_array(&out))
        .execute(&mut *transaction)
        .await?;
        for (run, count) in per_run {
            sqlx::query("UPDATE runs SET pending = pending - ?1, out = out + ?1 WHERE id = ?2")
                .bind(count)
                .bind(run.as_bytes().as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }
}
