//! What several parts share: batches read under the lock of their runs, counters, new batches.

use std::collections::HashMap;

use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use shared::name::PipelineName;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{batch_uuid, run_uuid};
use crate::ledger::group::Known;
use crate::ledger::row::{Cells, signed, state_number};
use crate::ledger::tally::{RunChange, Tally};
use crate::ledger::transition::State;
use crate::ledger::{LedgerError, NewBatch};

/// Rows and bytes of one insert statement: an array may not exceed a gigabyte.
const ROWS_PER_INSERT: usize = 5_000;
const BYTES_PER_INSERT: usize = 16 * 1024 * 1024;

/// The batches of a group, as far as there are any and their run was accepted. Their runs are locked before
/// they are read: nobody else cancels, pauses or counts meanwhile.
///
/// Batches are looked up by id before anything else is asked of them (`MATERIALIZED`), here and for their payloads:
/// PostgreSQL may otherwise begin with their run, or with all that is pending, and compare each with every id.
pub(super) async fn lock_known(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<BatchId, Known<BatchId>>, LedgerError> {
    sqlx::query(
        "WITH b AS MATERIALIZED (\
             SELECT DISTINCT b.run FROM UNNEST($1::uuid[]) AS u (id) JOIN batches b ON b.id = u.id) \
         SELECT 1 FROM runs WHERE id IN (SELECT run FROM b) ORDER BY id FOR NO KEY UPDATE",
    )
    .bind(ids)
    .execute(&mut *connection)
    .await?;
    let rows = sqlx::query(
        "WITH b AS MATERIALIZED (\
             SELECT b.* FROM UNNEST($1::uuid[]) AS u (id) JOIN batches b ON b.id = u.id) \
         SELECT b.id, b.run, b.pipeline, b.key, b.state, b.attempt, b.failures, b.releases, b.due, \
         r.priority, r.state AS run_state \
         FROM b JOIN runs r ON r.id = b.run AND r.state <> 'submitting'",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let read = |row| {
        let cells = Cells::batches(row);
        let id = cells.batch_id("id")?;
        Ok((id, cells.known(id)?))
    };
    rows.iter().map(read).collect()
}

/// Counts what the transaction changed, and finishes or wakes runs by it. The runs are locked already.
pub(super) async fn write_tally(
    connection: &mut PgConnection,
    tally: &Tally,
    now: Timestamp,
) -> Result<(), LedgerError> {
    write_runs(connection, tally, now).await?;
    write_statistics(connection, tally).await?;
    let names: Vec<&str> = tally.pipelines.keys().map(PipelineName::as_str).collect();
    let pending: Vec<i64> = tally
        .pipelines
        .values()
        .map(|counts| counts.pending)
        .collect();
    let out: Vec<i64> = tally.pipelines.values().map(|counts| counts.out).collect();
    sqlx::query(
        "INSERT INTO pipelines AS p (name, pending, out) \
         SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::bigint[]) ON CONFLICT (name) \
         DO UPDATE SET pending = p.pending + excluded.pending, out = p.out + excluded.out",
    )
    .bind(names)
    .bind(pending)
    .bind(out)
    .execute(connection)
    .await?;
    Ok(())
}

/// A run has finished when nothing of it is pending or out; a late follow-up or a redrive makes it run again.
/// One that was cancelled stays cancelled.
async fn write_runs(
    connection: &mut PgConnection,
    tally: &Tally,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let column = |of: fn(&RunChange) -> i64| tally.runs.values().map(of).collect::<Vec<i64>>();
    let ids: Vec<Uuid> = tally.runs.keys().map(|run| run_uuid(*run)).collect();
    sqlx::query(
        "UPDATE runs r SET accepted = r.accepted + u.accepted, pending = r.pending + u.pending, \
         out = r.out + u.out, completed = r.completed + u.completed, dead = r.dead + u.dead, \
         cancelled = r.cancelled + u.cancelled, retries = r.retries + u.retries, \
         rows = LEAST(r.rows, 9223372036854775807 - u.rows) + u.rows, \
         state = CASE WHEN r.state = 'cancelled' THEN r.state \
                 WHEN r.pending + u.pending + r.out + u.out = 0 THEN 'completed' \
                 WHEN r.state = 'paused' THEN r.state ELSE 'running' END, \
         finished_at = CASE WHEN r.pending + u.pending + r.out + u.out = 0 THEN coalesce(r.finished_at, $10) END, \
         webhook_due = CASE WHEN r.pending + u.pending + r.out + u.out > 0 OR r.webhook IS NULL THEN NULL \
                       WHEN r.finished_at IS NULL THEN $10 ELSE r.webhook_due END, \
         webhook_failures = CASE WHEN r.pending + u.pending + r.out + u.out = 0 THEN r.webhook_failures ELSE 0 END \
         FROM UNNEST($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
              $7::bigint[], $8::bigint[], $9::bigint[]) \
              AS u (run, accepted, pending, out, completed, dead, cancelled, retries, rows) \
         WHERE r.id = u.run AND r.state <> 'submitting'",
    )
    .bind(ids)
    .bind(column(|change| change.counts.accepted()))
    .bind(column(|change| change.counts.pending))
    .bind(column(|change| change.counts.out))
    .bind(column(|change| change.counts.completed))
    .bind(column(|change| change.counts.dead))
    .bind(column(|change| change.counts.cancelled))
    .bind(column(|change| change.retries))
    .bind(column(|change| signed(change.rows)))
    .bind(now.as_millisecond())
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_statistics(connection: &mut PgConnection, tally: &Tally) -> Result<(), LedgerError> {
    let (mut runs, mut names, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (run, change) in &tally.runs {
        for (name, value) in &change.statistics {
            runs.push(run_uuid(*run));
            names.push(name.as_str());
            values.push(signed(*value));
        }
    }
    if runs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO run_statistics AS s (run, name, value) \
         SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::bigint[]) ON CONFLICT (run, name) \
         DO UPDATE SET value = LEAST(s.value, 9223372036854775807 - excluded.value) + excluded.value",
    )
    .bind(runs)
    .bind(names)
    .bind(values)
    .execute(connection)
    .await?;
    Ok(())
}

/// A batch with the run it belongs to and the state it starts in.
pub(super) struct NewRow<'a> {
    pub(super) run: RunId,
    pub(super) state: State,
    pub(super) batch: &'a NewBatch,
}

/// Inserts batches and their payloads. The caller counts them.
pub(super) async fn insert_batches(
    connection: &mut PgConnection,
    rows: &[NewRow<'_>],
) -> Result<(), LedgerError> {
    let mut columns = Columns::default();
    for row in rows {
        columns.push(row);
        if columns.is_full() {
            columns.insert(connection).await?;
            columns = Columns::default();
        }
    }
    columns.insert(connection).await
}

/// Rows on their way into the database: an array for each column.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    runs: Vec<Uuid>,
    pipelines: Vec<&'a str>,
    keys: Vec<&'a str>,
    states: Vec<i64>,
    dues: Vec<i64>,
    sizes: Vec<i64>,
    bodies: Vec<&'a str>,
    bytes: usize,
}

impl<'a> Columns<'a> {
    fn push(&mut self, row: &NewRow<'a>) {
        let NewRow { run, state, batch } = row;
        let body = batch.payload.get();
        self.ids.push(batch_uuid(batch.id));
        self.runs.push(run_uuid(*run));
        self.pipelines.push(batch.pipeline.as_str());
        self.keys.push(batch.key.as_str());
        self.states.push(state_number(*state));
        self.dues.push(batch.due.as_millisecond());
        self.sizes.push(signed(body.len()));
        self.bodies.push(body);
        self.bytes += body.len();
    }

    fn is_full(&self) -> bool {
        self.ids.len() >= ROWS_PER_INSERT || self.bytes >= BYTES_PER_INSERT
    }

    async fn insert(&self, connection: &mut PgConnection) -> Result<(), LedgerError> {
        if self.ids.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO batches (id, run, pipeline, key, state, due, bytes) SELECT * FROM \
             UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[])",
        )
        .bind(&self.ids)
        .bind(&self.runs)
        .bind(&self.pipelines)
        .bind(&self.keys)
        .bind(&self.states)
        .bind(&self.dues)
        .bind(&self.sizes)
        .execute(&mut *connection)
        .await?;
        sqlx::query(
            "INSERT INTO payloads (batch, body) SELECT * FROM UNNEST($1::uuid[], $2::text[])",
        )
        .bind(&self.ids)
        .bind(&self.bodies)
        .execute(connection)
        .await?;
        Ok(())
    }
}
