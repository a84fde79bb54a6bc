//! Submission's part of the ledger in PostgreSQL.

use async_trait::async_trait;
use shared::id::RunId;
use sqlx::PgConnection;

use super::transaction::Write;
use super::write::{NewRow, insert_batches};
use super::{PostgresLedger, batch_uuid, bounded, run_uuid};
use crate::ledger::row::{Cells, signed};
use crate::ledger::transition::State;
use crate::ledger::{KnownRun, LedgerError, NewBatch, NewRun, Opened, SubmissionLedger};
use crate::run::Run;

/// Rows of one transaction while a half-submitted run is removed.
const ROWS_PER_REMOVAL: i64 = 5_000;

#[async_trait]
impl SubmissionLedger for PostgresLedger {
    async fn take(
        &self,
        run: &NewRun,
        batches: &[NewBatch],
        digest: &[u8; 32],
    ) -> Result<Opened<Run>, LedgerError> {
        bounded(async {
            let mut transaction = self.begin().await?;
            if !open(&mut transaction, run).await? {
                return self.known(transaction, run).await.map(Opened::Known);
            }
            append(&mut transaction, run.id, batches).await?;
            let accepted = accept(&mut transaction, run.id, digest).await?;
            let accepted = accepted.ok_or(LedgerError::NotSubmitting(run.id))?;
            transaction.commit().await?;
            Ok(Opened::New(accepted))
        })
        .await
    }

    async fn open_run(&self, run: &NewRun) -> Result<Opened, LedgerError> {
        bounded(async {
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
        })
        .await
    }

    async fn append(&self, run: RunId, batches: &[NewBatch]) -> Result<(), LedgerError> {
        bounded(async {
            let mut transaction = self.begin().await?;
            if append(&mut transaction, run, batches).await? {
                transaction.commit().await?;
            }
            Ok(())
        })
        .await
    }

    async fn accept(&self, run: RunId, digest: &[u8; 32]) -> Result<Run, LedgerError> {
        bounded(async {
            let mut transaction = self.begin().await?;
            let Some(accepted) = accept(&mut transaction, run, digest).await? else {
                drop(transaction);
                return self.accepted_before(run, digest).await;
            };
            transaction.commit().await?;
            Ok(accepted)
        })
        .await
    }

    async fn abandon(&self, run: RunId) -> Result<(), LedgerError> {
        while bounded(self.remove_chunk(run)).await? {}
        Ok(())
    }

    async fn backlog(&self) -> Result<u64, LedgerError> {
        bounded(async {
            let row =
                sqlx::query("SELECT coalesce(sum(pending), 0)::bigint AS pending FROM pipelines")
                    .fetch_one(&self.pool)
                    .await?;
            Cells::new("pipelines", &row).count("pending")
        })
        .await
    }
}

/// Adds the row of a run that is being submitted; `false` when its key is taken.
async fn open(connection: &mut PgConnection, run: &NewRun) -> Result<bool, LedgerError> {
    let inserted = sqlx::query(
        "INSERT INTO runs (id, pipeline, priority, state, idempotency_key, webhook, created_at) \
         VALUES ($1, $2, $3, 'submitting', $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(run_uuid(run.id))
    .bind(run.pipeline.as_str())
    .bind(run.priority.as_str())
    .bind(&run.idempotency_key)
    .bind(&run.webhook)
    .bind(run.created_at.as_millisecond())
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Adds a chunk; `false` when it is in already, and the transaction must not be committed.
async fn append(
    connection: &mut PgConnection,
    run: RunId,
    batches: &[NewBatch],
) -> Result<bool, LedgerError> {
    let Some(first) = batches.first() else {
        return Ok(true);
    };
    // The run's lock first: whoever appends the same chunk at the same time waits, and finds it.
    let counted = sqlx::query(
        "UPDATE runs SET accepted = accepted + $1, pending = pending + $1 WHERE id = $2 AND state = 'submitting'",
    )
    .bind(signed(batches.len()))
    .bind(run_uuid(run))
    .execute(&mut *connection)
    .await?;
    // A chunk goes in whole, so its first batch says whether it is there.
    let known = sqlx::query("SELECT 1 FROM batches WHERE id = $1 AND run = $2")
        .bind(batch_uuid(first.id))
        .bind(run_uuid(run))
        .fetch_optional(&mut *connection)
        .await?;
    if known.is_some() {
        return Ok(false);
    }
    if counted.rows_affected() != 1 {
        return Err(LedgerError::NotSubmitting(run));
    }
    let state = State::Pending;
    let rows: Vec<_> = batches
        .iter()
        .map(|batch| NewRow { run, state, batch })
        .collect();
    insert_batches(connection, &rows).await?;
    Ok(true)
}

/// Makes a run exist; `None` when it is not being submitted.
async fn accept(
    connection: &mut PgConnection,
    run: RunId,
    digest: &[u8; 32],
) -> Result<Option<Run>, LedgerError> {
    let accepted = sqlx::query(
        "UPDATE runs SET state = 'running', digest = $1 WHERE id = $2 AND state = 'submitting' RETURNING *",
    )
    .bind(digest.as_slice())
    .bind(run_uuid(run))
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = accepted else {
        return Ok(None);
    };
    let accepted = Cells::runs(&row).run()?;
    sqlx::query(
        "INSERT INTO pipelines AS p (name, pending) VALUES ($1, $2) ON CONFLICT (name) \
         DO UPDATE SET pending = p.pending + excluded.pending",
    )
    .bind(accepted.pipeline.as_str())
    .bind(signed(accepted.batches.pending))
    .execute(connection)
    .await?;
    Ok(Some(accepted))
}

impl PostgresLedger {
    /// The run whose id or idempotency key this one has.
    async fn known(&self, mut transaction: Write, run: &NewRun) -> Result<KnownRun, LedgerError> {
        // A run that is still being submitted has no digest yet, and is shown as running.
        let row = sqlx::query(
            "SELECT id, pipeline, CASE state WHEN 'submitting' THEN 'running' ELSE state END AS state, \
             priority, accepted, pending, out, completed, dead, cancelled, retries, rows, created_at, \
             finished_at, digest FROM runs WHERE id = $1 OR idempotency_key = $2",
        )
        .bind(run_uuid(run.id))
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
        let same = sqlx::query("SELECT 1 FROM runs WHERE id = $1 AND digest = $2")
            .bind(run_uuid(run))
            .bind(digest.as_slice())
            .fetch_optional(&self.pool)
            .await?;
        match same {
            Some(_) => self.read_run(run).await?,
            None => None,
        }
        .ok_or(LedgerError::NotSubmitting(run))
    }

    /// Removes some batches of a run that is being submitted, and the run itself after the last one: while
    /// it is there, a restart knows what is left to remove. Says whether there may be more.
    async fn remove_chunk(&self, run: RunId) -> Result<bool, LedgerError> {
        let mut transaction = self.begin().await?;
        // Looked at each time: a run that was accepted meanwhile keeps what it has.
        let submitting = sqlx::query(
            "SELECT 1 FROM runs WHERE id = $1 AND state = 'submitting' FOR NO KEY UPDATE",
        )
        .bind(run_uuid(run))
        .fetch_optional(&mut *transaction)
        .await?;
        if submitting.is_none() {
            return Ok(false);
        }
        let removed = sqlx::query(
            "WITH gone AS (DELETE FROM batches WHERE id IN \
                 (SELECT id FROM batches WHERE run = $1 AND state = 0 LIMIT $2) RETURNING id) \
             DELETE FROM payloads USING gone WHERE batch = gone.id",
        )
        .bind(run_uuid(run))
        .bind(ROWS_PER_REMOVAL)
        .execute(&mut *transaction)
        .await?;
        if removed.rows_affected() == 0 {
            sqlx::query("DELETE FROM runs WHERE id = $1")
                .bind(run_uuid(run))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(removed.rows_affected() > 0)
    }

    /// A crash between opening and accepting a run leaves it in state `submitting`, with nobody to finish it.
    pub(super) async fn remove_half_submitted(&self) -> Result<(), LedgerError> {
        let rows = sqlx::query("SELECT id FROM runs WHERE state = 'submitting'")
            .fetch_all(&self.pool)
            .await?;
        for row in &rows {
            let run = Cells::runs(row).run_id("id")?;
            tracing::warn!(run.id = %run, "removing a run whose submission was cut off");
            self.abandon(run).await?;
        }
        Ok(())
    }
}
