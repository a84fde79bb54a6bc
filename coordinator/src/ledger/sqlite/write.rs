//! What several parts write: the counters of runs and pipelines, and new batches.

use shared::id::RunId;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use crate::ledger::row::{signed, state_number};
use crate::ledger::tally::{RunChange, Tally};
use crate::ledger::transition::State;
use crate::ledger::{LedgerError, NewBatch};
use jiff::Timestamp;

/// Rows of one insert statement: few enough for SQLite's bound parameters, many enough that parsing is cheap.
const ROWS_PER_INSERT: usize = 500;

/// Counts what the transaction changed, and finishes or wakes runs by it.
pub(super) async fn write_tally(
    connection: &mut SqliteConnection,
    tally: &Tally,
    now: Timestamp,
) -> Result<(), LedgerError> {
    for (run, change) in &tally.runs {
        write_run(connection, *run, change, now).await?;
    }
    for (pipeline, counts) in &tally.pipelines {
        sqlx::query(
            "INSERT INTO pipelines (name, pending, out) VALUES (?, ?, ?) ON CONFLICT (name) \
             DO UPDATE SET pending = pending + excluded.pending, out = out + excluded.out",
        )
        .bind(pipeline.as_str())
        .bind(counts.pending)
        .bind(counts.out)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// A run has finished when nothing of it is pending or out; a late follow-up or a redrive makes it run again.
/// One that was cancelled stays cancelled.
async fn write_run(
    connection: &mut SqliteConnection,
    run: RunId,
    change: &RunChange,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let counts = &change.counts;
    sqlx::query(
        "UPDATE runs SET accepted = accepted + ?2, pending = pending + ?3, out = out + ?4, \
         completed = completed + ?5, dead = dead + ?6, cancelled = cancelled + ?7, retries = retries + ?8, \
         rows = min(rows, 9223372036854775807 - ?9) + ?9, \
         state = CASE WHEN state = 'cancelled' THEN state WHEN pending + ?3 + out + ?4 = 0 THEN 'completed' \
                 WHEN state = 'paused' THEN state ELSE 'running' END, \
         finished_at = iif(pending + ?3 + out + ?4 = 0, coalesce(finished_at, ?10), NULL), \
         webhook_due = CASE WHEN pending + ?3 + out + ?4 > 0 OR webhook IS NULL THEN NULL \
                       WHEN finished_at IS NULL THEN ?10 ELSE webhook_due END, \
         webhook_failures = iif(pending + ?3 + out + ?4 = 0, webhook_failures, 0) \
         WHERE id = ?1 AND state <> 'submitting'",
    )
    .bind(run.as_bytes().as_slice())
    .bind(counts.accepted())
    .bind(counts.pending)
    .bind(counts.out)
    .bind(counts.completed)
    .bind(counts.dead)
    .bind(counts.cancelled)
    .bind(change.retries)
    .bind(signed(change.rows))
    .bind(now.as_millisecond())
    .execute(&mut *connection)
    .await?;
    for (name, value) in &change.statistics {
        sqlx::query(
            "INSERT INTO run_statistics (run, name, value) VALUES (?, ?, ?) ON CONFLICT (run, name) \
             DO UPDATE SET value = min(value, 9223372036854775807 - excluded.value) + excluded.value",
        )
        .bind(run.as_bytes().as_slice())
        .bind(name)
        .bind(signed(*value))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Inserts batches and their payloads. The caller counts them.
pub(super) async fn insert_batches(
    connection: &mut SqliteConnection,
    run: RunId,
    state: State,
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
                .push_bind(state_number(state))
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
