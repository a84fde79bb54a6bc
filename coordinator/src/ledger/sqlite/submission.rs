//! Submission's part of the ledger in SQLite.

use async_trait::async_trait;
use shared::id::RunId;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::SqliteLedger;
use super::row::Cells;
use crate::ledger::{LedgerError, NewBatch, NewRun, Opened, SubmissionLedger};
use crate::run::Run;

/// Rows of one insert statement: few enough for SQLite's bound parameters, many enough that parsing is cheap.
const ROWS_PER_INSERT: usize = 500;
/// Rows of one transaction while a half-submitted run is removed, so that others get a turn in between.
const ROWS_PER_REMOVAL: i64 = 5_000;

#[async_trait]
impl SubmissionLedger for SqliteLedger {
    async fn open_run(&self, run: &NewRun) -> Result<Opened, LedgerError> {
        let mut transaction = self.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO runs (id, pipeline, priority, state, idempotency_key, created_at) \
             VALUES (?, ?, ?, 'submitting', ?, ?) ON CONFLICT (idempotency_key) DO NOTHING",
        )
        .bind(run.id.as_bytes().as_slice())
        .bind(run.pipeline.as_str())
        .bind(run.priority.as_str())
        .bind(&run.idempotency_key)
        .bind(run.created_at.as_millisecond())
        .execute(&mut *transaction)
        .await?;
        if inserted.rows_affected() == 1 {
            transaction.commit().await?;
            return Ok(Opened::New);
        }
        // A run that is still being submitted has no digest yet, and is shown as running.
        let known = sqlx::query(
            "SELECT *, iif(state = 'submitting', 'running', state) AS state FROM runs WHERE idempotency_key = ?",
        )
        .bind(&run.idempotency_key)
        .fetch_one(&mut *transaction)
        .await?;
        let digest =
            sqlx::Row::try_get::<Option<Vec<u8>>, _>(&known, "digest")?.unwrap_or_default();
        let id = Cells {
            table: "runs",
            row: &known,
        }
        .run_id("id")?;
        drop(transaction);
        let run = if digest.is_empty() {
            Cells {
                table: "runs",
                row: &known,
            }
            .run()?
        } else {
            self.read_run(id)
                .await?
                .ok_or(LedgerError::NotSubmitting(id))?
        };
        Ok(Opened::Known {
            run: Box::new(run),
            digest,
        })
    }

    async fn append(&self, run: RunId, batches: &[NewBatch]) -> Result<(), LedgerError> {
        let mut transaction = self.begin().await?;
        insert_batches(&mut transaction, run, batches).await?;
        let counted = sqlx::query(
            "UPDATE runs SET accepted = accepted + ?1, pending = pending + ?1 WHERE id = ?2 AND state = 'submitting'",
        )
        .bind(signed(batches.len()))
        .bind(run.as_bytes().as_slice())
        .execute(&mut *transaction)
        .await?;
        if counted.rows_affected() != 1 {
            return Err(LedgerError::NotSubmitting(run));
        }
        Ok(transaction.commit().await?)
    }

    async fn accept(&self, run: RunId, digest: &[u8; 32]) -> Result<Run, LedgerError> {
        let accepted = sqlx::query(
            "UPDATE runs SET state = 'running', digest = ? WHERE id = ? AND state = 'submitting' RETURNING *",
        )
        .bind(digest.as_slice())
        .bind(run.as_bytes().as_slice())
        .fetch_optional(&self.writer)
        .await?;
        let row = accepted.ok_or(LedgerError::NotSubmitting(run))?;
        Cells {
            table: "runs",
            row: &row,
        }
        .run()
    }

    async fn abandon(&self, run: RunId) -> Result<(), LedgerError> {
        loop {
            let mut transaction = self.begin().await?;
            // Looked at each time: a run that was accepted meanwhile keeps what it has.
            let submitting =
                sqlx::query("SELECT 1 FROM runs WHERE id = ? AND state = 'submitting'")
                    .bind(run.as_bytes().as_slice())
                    .fetch_optional(&mut *transaction)
                    .await?;
            if submitting.is_none() {
                return Ok(());
            }
            let chunk = sqlx::query_scalar::<_, i64>(
                "DELETE FROM batches WHERE seq IN (SELECT seq FROM batches \
                 WHERE run = ? AND state = 0 LIMIT ?) RETURNING seq",
            )
            .bind(run.as_bytes().as_slice())
            .bind(ROWS_PER_REMOVAL)
            .fetch_all(&mut *transaction)
            .await?;
            if chunk.is_empty() {
                // The run itself goes last: while it is there, a restart knows what is left to remove.
                sqlx::query("DELETE FROM runs WHERE id = ?")
                    .bind(run.as_bytes().as_slice())
                    .execute(&mut *transaction)
                    .await?;
                return Ok(transaction.commit().await?);
            }
            sqlx::query("DELETE FROM payloads WHERE seq IN (SELECT value FROM json_each(?))")
                .bind(serde_json::json!(chunk).to_string())
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        }
    }

    async fn backlog(&self) -> Result<u64, LedgerError> {
        let row = sqlx::query(
            "SELECT coalesce(sum(pending), 0) AS pending FROM runs WHERE state = 'running'",
        )
        .fetch_one(&self.readers)
        .await?;
        Cells {
            table: "runs",
            row: &row,
        }
        .count("pending")
    }
}

impl SqliteLedger {
    /// A crash between opening and accepting a run leaves it in state `submitting`, with nobody to finish it.
    pub(super) async fn remove_half_submitted(&self) -> Result<(), LedgerError> {
        let rows = sqlx::query("SELECT id FROM runs WHERE state = 'submitting'")
            .fetch_all(&self.writer)
            .await?;
        for row in &rows {
            let run = Cells { table: "runs", row }.run_id("id")?;
            tracing::warn!(run.id = %run, "removing a run whose submission was cut off");
            self.abandon(run).await?;
        }
        Ok(())
    }
}

/// Inserts pending batches and their payloads. The caller counts them in the run.
pub(super) async fn insert_batches(
    connection: &mut SqliteConnection,
    run: RunId,
    batches: &[NewBatch],
) -> Result<(), LedgerError> {
    // Only one connection writes, so the next numbers cannot be taken by anybody else.
    let mut seq: i64 = sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM batches")
        .fetch_one(&mut *connection)
        .await?;
    for chunk in batches.chunks(ROWS_PER_INSERT) {
        let mut states = QueryBuilder::<Sqlite>::new(
            "INSERT INTO batches (seq, id, run, pipeline, key, state, due, bytes) ",
        );
        states.push_values(chunk.iter().zip(seq + 1..), |mut row, (batch, seq)| {
            row.push_bind(seq)
                .push_bind(batch.id.as_bytes().as_slice())
                .push_bind(run.as_bytes().as_slice())
                .push_bind(batch.pipeline.as_str())
                .push_bind(batch.key.as_str())
                .push("0")
                .push_bind(batch.due.as_millisecond())
                .push_bind(signed(batch.payload.get().len()));
        });
        states.build().execute(&mut *connection).await?;
        let mut payloads = QueryBuilder::<Sqlite>::new("INSERT INTO payloads (seq, body) ");
        payloads.push_values(chunk.iter().zip(seq + 1..), |mut row, (batch, seq)| {
            row.push_bind(seq).push_bind(batch.payload.get());
        });
        payloads.build().execute(&mut *connection).await?;
        seq += signed(chunk.len());
    }
    Ok(())
}

/// Counts and sizes fit: memory ends long before `i64` does.
pub(super) fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
