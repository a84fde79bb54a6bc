//! Settlement's part of the ledger in PostgreSQL: lock the runs of a group, read its batches, let [`group`]
//! decide, write what changed, all in one transaction.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::BatchId;
use shared::name::Instance;
use sqlx::PgConnection;
use uuid::Uuid;

use super::write::{NewRow, insert_batches, lock_known, write_tally};
use super::{PostgresLedger, batch_uuid, bounded};
use crate::ledger::group::{self, BatchChange, Completion, Ended, KEPT_ATTEMPTS};
use crate::ledger::row::{signed, state_number};
use crate::ledger::transition::Judged;
use crate::ledger::{LedgerError, Settled, SettlementLedger};

#[async_trait]
impl SettlementLedger for PostgresLedger {
    async fn settle(
        &self,
        outcomes: &[Judged],
        now: Timestamp,
    ) -> Result<Vec<Settled>, LedgerError> {
        bounded(async {
            let mut transaction = self.begin().await?;
            let ids: Vec<Uuid> = outcomes.iter().map(|o| batch_uuid(o.batch)).collect();
            let known = lock_known(&mut transaction, &ids).await?;
            let (settled, changes) = group::settle(known, outcomes, now);
            if changes.batches.is_empty() {
                return Ok(settled);
            }
            write_batches(&mut transaction, &changes.batches).await?;
            write_attempts(&mut transaction, &changes.ended, now).await?;
            let mut follow_ups = Vec::new();
            for (run, (state, batches)) in &changes.follow_ups {
                let (run, state) = (*run, *state);
                follow_ups.extend(batches.iter().map(|batch| NewRow { run, state, batch }));
            }
            insert_batches(&mut transaction, &follow_ups).await?;
            write_tally(&mut transaction, &changes.tally, now).await?;
            transaction.commit().await?;
            Ok(settled)
        })
        .await
    }
}

/// Writes states, counts and errors of the whole group in one statement.
async fn write_batches(
    connection: &mut PgConnection,
    batches: &BTreeMap<BatchId, BatchChange>,
) -> Result<(), LedgerError> {
    let ids: Vec<Uuid> = batches.keys().map(|id| batch_uuid(*id)).collect();
    let updates = || batches.values().map(|change| &change.update);
    let how = || batches.values().map(|change| change.completion.as_ref());
    sqlx::query(
        "UPDATE batches b SET state = u.state, attempt = u.attempt, failures = u.failures, \
         releases = u.releases, due = u.due, reason = u.reason, error = u.error, worker = u.worker, \
         took_ms = u.took_ms, out_at = u.out_at, alone_on = NULL \
         FROM UNNEST($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
              $7::text[], $8::text[], $9::text[], $10::bigint[], $11::bigint[]) \
              AS u (id, state, attempt, failures, releases, due, reason, error, worker, took_ms, out_at) \
         WHERE b.id = u.id",
    )
    .bind(ids)
    .bind(numbers(updates().map(|u| state_number(u.stored.state))))
    .bind(numbers(updates().map(|u| u.stored.attempt.number().into())))
    .bind(numbers(updates().map(|u| u.stored.failures.into())))
    .bind(numbers(updates().map(|u| u.stored.releases.into())))
    .bind(numbers(updates().map(|u| u.due.as_millisecond())))
    .bind(updates().map(|u| u.reason.as_deref()).collect::<Vec<_>>())
    .bind(updates().map(|u| u.error.as_deref()).collect::<Vec<_>>())
    .bind(how().map(|how| how.and_then(worker)).collect::<Vec<_>>())
    .bind(how().map(|how| how.and_then(took)).collect::<Vec<_>>())
    .bind(how().map(|how| how.and_then(out_at)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds to the history, and takes away what is older than the attempts that are kept.
async fn write_attempts(
    connection: &mut PgConnection,
    ended: &[Ended<BatchId>],
    now: Timestamp,
) -> Result<(), LedgerError> {
    if ended.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = ended.iter().map(|e| batch_uuid(e.row)).collect();
    let attempts = numbers(ended.iter().map(|e| e.attempt.number().into()));
    sqlx::query(
        "INSERT INTO attempts (settled_at, batch, attempt, verdict, error, worker, out_at, took_ms) \
         SELECT $1, u.* FROM UNNEST($2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], \
         $7::bigint[], $8::bigint[]) u ON CONFLICT DO NOTHING",
    )
    .bind(now.as_millisecond())
    .bind(&ids)
    .bind(&attempts)
    .bind(ended.iter().map(|e| e.verdict.as_str()).collect::<Vec<_>>())
    .bind(ended.iter().map(|e| e.error.as_deref()).collect::<Vec<_>>())
    .bind(ended.iter().map(|e| worker(&e.how)).collect::<Vec<_>>())
    .bind(ended.iter().map(|e| out_at(&e.how)).collect::<Vec<_>>())
    .bind(ended.iter().map(|e| took(&e.how)).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    if attempts
        .iter()
        .all(|attempt| *attempt <= i64::from(KEPT_ATTEMPTS))
    {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM attempts a USING UNNEST($1::uuid[], $2::bigint[]) AS u (batch, attempt) \
         WHERE a.batch = u.batch AND a.attempt <= u.attempt - $3",
    )
    .bind(&ids)
    .bind(&attempts)
    .bind(i64::from(KEPT_ATTEMPTS))
    .execute(connection)
    .await?;
    Ok(())
}

fn numbers(numbers: impl Iterator<Item = i64>) -> Vec<i64> {
    numbers.collect()
}

fn worker(how: &Completion) -> Option<&str> {
    how.worker.as_ref().map(Instance::as_str)
}

fn took(how: &Completion) -> Option<i64> {
    how.took.map(|took| signed(took.as_millis()))
}

fn out_at(how: &Completion) -> Option<i64> {
    how.out_at.map(Timestamp::as_millisecond)
}
