//! Submission's part of the ledger in SQLite.

use async_trait::async_trait;
use shared::id::RunId;
use sqlx::{Sqlite, SqliteConnection, Transaction};

use super::SqliteLedger;
use super::write::insert_batches;
use crate::ledger::row::{Cells, signed};
use crate::ledger::transition::State;
use crate::ledger::{KnownRun, LedgerError, NewBatch, NewRun, Opened, SubmissionLedger};
use crate::run::Run;

/// Rows of one transaction while a half-submitted run is removed, so that others get a turn in between.
const ROWS_PER_REMOVAL: i64 = 5_000;

#[async_trait]
impl SubmissionLedger for SqliteLedger {
    async fn take(
        &self,
        run: &NewRun,
        batches: &[NewBatch],
        digest: &[u8; 32],
    ) -> Result<Opened<Run>, LedgerError> {
        let mut transaction = self.begin().await?;
        if !open(&mut transaction, run).await? {
            return self.known(transaction, run).await.map(Opened::Known);
        }
        append(&mut transaction, run.id, batches).await?;
        let accepted = accept(&mut transaction, run.id, digest).await?;
        let accepted = accepted.ok_or(LedgerError::NotSubmitting(run.id))?;
        transaction.commit().await?;
        Ok(Opened::New(accepted))
    }

    async fn open_run(&self, run: &NewRun) -> Result<Opened, LedgerError> {
        let mut transaction = self.begin().await?;
        if open(&mut transaction, run).await? {
            transaction.commit().await?;
            return Ok(Opened::New(()));
        }
        let known = self.known(transaction, run).await?;
        if known.digest.is_empty() && known.run.run == run.id {
            return Ok(Opened::New(()));
        }
        Ok(Opened::Known(known))
    }

    async fn append(&self, run: RunId, batches: &[NewBatch]) -> Result<(), LedgerError> {
        let mut transaction = self.begin().await?;
        append(&mut transaction, run, batches).await?;
        Ok(transaction.commit().await?)
    }

    async fn accept(&self, run: RunId, digest: &[u8; 32]) -> Result<Run, LedgerError> {
        let mut transaction = self.begin().await?;
        let Some(accepted) = accept(&mut transaction, run, digest).await? else {
            drop(transaction);
            return self.accepted_before(run, digest).await;
        };
        transaction.commit().await?;
        Ok(accepted)
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
        let row = sqlx::query("SELECT coalesce(sum(pending), 0) AS pending FROM pipelines")
            .fetch_one(&self.readers)
            .await?;
        Cells::new("pipelines", &row).count("pending")
    }
}

/// Adds the row of a run that is being submitted; `false` when its key is taken.
async fn open(connection: &mut SqliteConnection, run: &NewRun) -> Result<bool, LedgerError> {
    let inserted = sqlx::query(
        "INSERT INTO runs (id, pipeline, priority, state, idempotency_key, webhook, created_at) \
         VALUES (?, ?, ?, 'submitting', ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(run.id.as_bytes().as_slice())
    .bind(run.pipeline.as_str())
    .bind(run.priority.as_str())
    .bind(&run.idempotency_key)
    .bind(&run.webhook)
    .bind(run.created_at.as_millisecond())
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Adds a chunk, unless it is in already.
async fn append(
    connection: &mut SqliteConnection,
    run: RunId,
    batches: &[NewBatch],
) -> Result<(), LedgerError> {
    let Some(first) = batches.first() else {
        return Ok(());
    };
    // A chunk goes in whole, so its first batch says whether it is there.
    let known = sqlx::query("SELECT 1 FROM batches WHERE id = ? AND run = ?")
        .bind(first.id.as_bytes().as_slice())
        .bind(run.as_bytes().as_slice())
        .fetch_optional(&mut *connection)
        .await?;
    if known.is_some() {
        return Ok(());
    }
    let counted = sqlx::query(
        "UPDATE runs SET accepted = accepted + ?1, pending = pending + ?1 WHERE id = ?2 AND state = 'submitting'",
    )
    .bind(signed(batches.len()))
    .bind(run.as_bytes().as_slice())
    .execute(&mut *connection)
    .await?;
    if counted.rows_affected() != 1 {
        return Err(LedgerError::NotSubmitting(run));
    }
    insert_batches(connection, run, State::Pending, batches).await
}

/// Makes a run exist; `None` when it is not being submitted.
async fn accept(
    connection: &mut SqliteConnection,
    run: RunId,
    digest: &[u8; 32],
) -> Result<Option<Run>, LedgerError> {
    let accepted = sqlx::query(
        "UPDATE runs SET state = 'running', digest = ? WHERE id = ? AND state = 'submitting' RETURNING *",
    )
    .bind(digest.as_slice())
    .bind(run.as_bytes().as_slice())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = accepted else {
        return Ok(None);
    };
    let accepted = Cells::runs(&row).run()?;
    sqlx::query(
        "INSERT INTO pipelines (name, pending) VALUES (?, ?) ON CONFLICT (name) \
         DO UPDATE SET pending = pending + excluded.pending",
    )
    .bind(accepted.pipeline.as_str())
    .bind(signed(accepted.batches.pending))
    .execute(connection)
    .await?;
    Ok(Some(accepted))
}

impl SqliteLedger {
    /// The run whose id or idempotency key this one has.
    async fn known(
        &self,
        mut transaction: Transaction<'static, Sqlite>,
        run: &NewRun,
    ) -> Result<KnownRun, LedgerError> {
        // A run that is still being submitted has no digest yet, and is shown as running.
        let row = sqlx::query(
            "SELECT *, iif(state = 'submitting', 'running', state) AS state FROM runs \
             WHERE id = ? OR idempotency_key = ?",
        )
        .bind(run.id.as_bytes().as_slice())
        .bind(&run.idempotency_key)
        .fetch_one(&mut *transaction)
        .await?;
        drop(transaction);
        let known = Cells::runs(&row).run()?;
        Ok(KnownRun {
            run: Box::new(self.with_statistics(known).await?),
            digest: Cells::runs(&row).bytes("digest")?.unwrap_or_default(),
        })
    }

    /// The run, if it was accepted with these lines.
    async fn accepted_before(&self, run: RunId, digest: &[u8; 32]) -> Result<Run, LedgerError> {
        let same = sqlx::query("SELECT 1 FROM runs WHERE id = ? AND digest = ?")
            .bind(run.as_bytes().as_slice())
            .bind(digest.as_slice())
            .fetch_optional(&self.readers)
            .await?;
        match same {
            Some(_) => self.read_run(run).await?,
            None => None,
        }
        .ok_or(LedgerError::NotSubmitting(run))
    }

    /// A crash between opening and accepting a run leaves it in state `submitting`, with nobody to finish it.
    pub(super) async fn remove_half_submitted(&self) -> Result<(), LedgerError> {
        let rows = sqlx::query("SELECT id FROM runs WHERE state = 'submitting'")
            .fetch_all(&self.writer)
            .await?;
        for row in &rows {
            let run = Cells::runs(row).run_id("id")?;
            tracing::warn!(run.id = %run, "removing a run whose submission was cut off");
            self.abandon(run).await?;
        }
        Ok(())
    }
}
