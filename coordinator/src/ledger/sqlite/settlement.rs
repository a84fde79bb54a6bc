//! Settlement's part of the ledger in SQLite: read the batches of a group, let [`group`] decide, write what
//! changed, all in one transaction.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::id::BatchId;
use sqlx::SqliteConnection;

use super::write::{insert_batches, write_tally};
use super::{SqliteLedger, id_array};
use crate::ledger::group::{self, BatchChange, Ended, KEPT_ATTEMPTS, Known};
use crate::ledger::row::{Cells, signed, state_number};
use crate::ledger::transition::{Judged, Stored};
use crate::ledger::{LedgerError, Settled, SettlementLedger};

#[async_trait]
impl SettlementLedger for SqliteLedger {
    async fn settle(
        &self,
        outcomes: &[Judged],
        now: Timestamp,
    ) -> Result<Vec<Settled>, LedgerError> {
        let mut transaction = self.begin().await?;
        let ids = outcomes.iter().map(|outcome| &outcome.batch);
        let known = read_known(&mut transaction, ids).await?;
        let (settled, changes) = group::settle(known, outcomes, now);
        if changes.batches.is_empty() {
            return Ok(settled);
        }
        write_batches(&mut transaction, &changes.batches).await?;
        write_attempts(&mut transaction, &changes.ended, now).await?;
        for (run, (state, batches)) in &changes.follow_ups {
            insert_batches(&mut transaction, *run, *state, batches).await?;
        }
        write_tally(&mut transaction, &changes.tally, now).await?;
        transaction.commit().await?;
        Ok(settled)
    }
}

/// The batches of a group, as far as there are any and their run was accepted.
pub(super) async fn read_known(
    connection: &mut SqliteConnection,
    ids: impl IntoIterator<Item = &BatchId>,
) -> Result<HashMap<BatchId, Known<i64>>, LedgerError> {
    let rows = sqlx::query(
        "SELECT b.seq, b.id, b.run, b.pipeline, b.key, b.state, b.attempt, b.failures, b.releases, b.due, \
         r.priority, r.state AS run_state \
         FROM json_each(?) j CROSS JOIN batches b ON b.id = unhex(j.value) \
         CROSS JOIN runs r ON r.id = b.run AND r.state <> 'submitting'",
    )
    .bind(id_array(ids))
    .fetch_all(connection)
    .await?;
    let read = |row| {
        Ok((
            Cells::batches(row).batch_id("id")?,
            Cells::batches(row).known(Cells::batches(row).seq()?)?,
        ))
    };
    rows.iter().map(read).collect()
}

/// Writes states, counts and errors of the whole group in one statement.
async fn write_batches(
    connection: &mut SqliteConnection,
    batches: &BTreeMap<i64, BatchChange>,
) -> Result<(), LedgerError> {
    let row = |(seq, change): (&i64, &BatchChange)| {
        let BatchChange { update, completion } = change;
        let Stored {
            state,
            attempt,
            failures,
            releases,
            called_off: _,
        } = update.stored;
        let how = completion.as_ref();
        json!([
            seq,
            state_number(state),
            attempt,
            failures,
            releases,
            update.due.as_millisecond(),
            update.reason,
            update.error,
            how.and_then(|how| how.worker.as_ref()),
            how.and_then(|how| how.took)
                .map(|took| signed(took.as_millis())),
            how.and_then(|how| how.out_at)
                .map(Timestamp::as_millisecond),
        ])
    };
    sqlx::query(
        "UPDATE batches SET state = v.value ->> 1, attempt = v.value ->> 2, failures = v.value ->> 3, \
         releases = v.value ->> 4, due = v.value ->> 5, reason = v.value ->> 6, error = v.value ->> 7, \
         worker = v.value ->> 8, took_ms = v.value ->> 9, out_at = v.value ->> 10, alone_on = NULL \
         FROM json_each(?) v WHERE batches.seq = v.value ->> 0",
    )
    .bind(batches.iter().map(row).collect::<Value>().to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds to the history, and takes away what is older than the attempts that are kept.
async fn write_attempts(
    connection: &mut SqliteConnection,
    ended: &[Ended<i64>],
    now: Timestamp,
) -> Result<(), LedgerError> {
    if ended.is_empty() {
        return Ok(());
    }
    let row = |ended: &Ended<i64>| {
        json!([
            ended.row,
            ended.attempt,
            ended.verdict,
            ended.error,
            ended.how.worker,
            ended.how.out_at.map(Timestamp::as_millisecond),
            ended.how.took.map(|took| signed(took.as_millis())),
        ])
    };
    sqlx::query(
        "INSERT INTO attempts (batch, attempt, verdict, error, worker, out_at, took_ms, settled_at) \
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, ?2 \
         FROM json_each(?1) WHERE true ON CONFLICT DO NOTHING",
    )
    .bind(ended.iter().map(row).collect::<Value>().to_string())
    .bind(now.as_millisecond())
    .execute(&mut *connection)
    .await?;
    for ended in ended {
        let Some(oldest) = ended.attempt.number().checked_sub(KEPT_ATTEMPTS) else {
            continue;
        };
        sqlx::query("DELETE FROM attempts WHERE batch = ? AND attempt <= ?")
            .bind(ended.row)
            .bind(oldest)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
