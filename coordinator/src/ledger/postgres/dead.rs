//! Dead batches in PostgreSQL: found by a filter, listed, counted, redriven, discarded.

use std::time::Duration;

use jiff::Timestamp;
use shared::id::BatchId;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::write::{lock_known, write_tally};
use super::{PostgresLedger, batch_uuid, run_uuid};
use crate::ledger::group::{self, Known};
use crate::ledger::row::Cells;
use crate::ledger::transition::DISCARDED;
use crate::ledger::{DeadFilter, LedgerError, Redriven};
use crate::run::DeadBatch;

impl PostgresLedger {
    pub(super) async fn list_dead(
        &self,
        filter: &DeadFilter,
        limit: u32,
    ) -> Result<Vec<DeadBatch>, LedgerError> {
        let mut query = QueryBuilder::<Postgres>::new(
            "SELECT id, run, pipeline, key, attempt, due, reason, error \
             FROM batches b WHERE state = 3",
        );
        push_filter(&mut query, filter);
        query
            .push(" ORDER BY due DESC, id DESC LIMIT ")
            .push_bind(i64::from(limit));
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| Cells::batches(row).dead_batch())
            .collect()
    }

    pub(super) async fn number_of_dead(&self, filter: &DeadFilter) -> Result<u64, LedgerError> {
        let mut query = QueryBuilder::<Postgres>::new(
            "SELECT count(*) AS number FROM batches b WHERE state = 3",
        );
        push_filter(&mut query, filter);
        let row = query.build().fetch_one(&self.pool).await?;
        Cells::batches(&row).count("number")
    }

    pub(super) async fn redrive_dead(
        &self,
        filter: &DeadFilter,
        limit: u32,
        from: Timestamp,
        spacing: Duration,
    ) -> Result<Redriven, LedgerError> {
        let mut transaction = self.begin().await?;
        let and = " AND (SELECT state FROM runs WHERE id = b.run) <> 'cancelled'";
        let dead = lock_dead(&mut transaction, filter, and, limit).await?;
        let (pending, redriven, tally) = group::redrive(&dead, from, spacing);
        let ids: Vec<Uuid> = pending.iter().map(|(id, _)| batch_uuid(*id)).collect();
        let dues: Vec<i64> = pending
            .iter()
            .map(|(_, due)| due.as_millisecond())
            .collect();
        // It starts over, but for its attempts: what is remembered of its culprits ends, too.
        sqlx::query(
            "UPDATE batches b SET state = 0, failures = 0, releases = 0, due = u.due, reason = NULL, \
             error = NULL, deaths = 0, alone_on = NULL \
             FROM UNNEST($1::uuid[], $2::bigint[]) AS u (id, due) WHERE b.id = u.id",
        )
        .bind(ids)
        .bind(dues)
        .execute(&mut *transaction)
        .await?;
        write_tally(&mut transaction, &tally, from).await?;
        transaction.commit().await?;
        Ok(redriven)
    }

    pub(super) async fn discard_dead(
        &self,
        filter: &DeadFilter,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, LedgerError> {
        let mut transaction = self.begin().await?;
        let dead = lock_dead(&mut transaction, filter, "", limit).await?;
        let (discarded, tally) = group::discard(&dead);
        let ids: Vec<Uuid> = discarded.iter().map(|id| batch_uuid(*id)).collect();
        sqlx::query("UPDATE batches SET state = 4, due = $1, reason = $2 WHERE id = ANY($3)")
            .bind(now.as_millisecond())
            .bind(DISCARDED)
            .bind(ids)
            .execute(&mut *transaction)
            .await?;
        write_tally(&mut transaction, &tally, now).await?;
        transaction.commit().await?;
        Ok(discarded.len() as u64)
    }
}

/// Dead batches, oldest first. They are chosen without a lock, and read again under that of their runs:
/// whatever became of one in between is seen.
async fn lock_dead(
    connection: &mut PgConnection,
    filter: &DeadFilter,
    and: &str,
    limit: u32,
) -> Result<Vec<Known<BatchId>>, LedgerError> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT b.id FROM batches b WHERE b.state = 3");
    query.push(and);
    push_filter(&mut query, filter);
    query
        .push(" ORDER BY b.due, b.id LIMIT ")
        .push_bind(i64::from(limit));
    let chosen: Vec<Uuid> = query
        .build_query_scalar()
        .fetch_all(&mut *connection)
        .await?;
    let mut known = lock_known(connection, &chosen).await?;
    let in_order = |id: &Uuid| known.remove(&BatchId::from_bytes(id.as_bytes())?);
    Ok(chosen.iter().filter_map(in_order).collect())
}

fn push_filter(query: &mut QueryBuilder<Postgres>, filter: &DeadFilter) {
    let DeadFilter {
        run,
        pipeline,
        batch,
        key,
        reason,
        before,
    } = filter;
    if let Some(run) = run {
        query.push(" AND b.run = ").push_bind(run_uuid(*run));
    }
    if let Some(pipeline) = pipeline {
        query
            .push(" AND b.pipeline = ")
            .push_bind(pipeline.as_str().to_owned());
    }
    if let Some(batch) = batch {
        query.push(" AND b.id = ").push_bind(batch_uuid(*batch));
    }
    if let Some(key) = key {
        query
            .push(" AND b.key = ")
            .push_bind(key.as_str().to_owned());
    }
    if let Some(reason) = reason {
        query
            .push(" AND b.reason = ")
            .push_bind(group::storable_reason(reason));
    }
    if let Some(before) = before {
        query
            .push(" AND b.due < ")
            .push_bind(before.as_millisecond());
    }
}
