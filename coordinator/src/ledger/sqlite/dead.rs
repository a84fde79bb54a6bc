//! Dead batches in SQLite: found by a filter, listed, counted, redriven, discarded.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::SqliteLedger;
use super::write::write_tally;
use crate::ledger::group::{self, Known};
use crate::ledger::row::Cells;
use crate::ledger::transition::DISCARDED;
use crate::ledger::{DeadFilter, LedgerError, Redriven};
use crate::run::DeadBatch;

impl SqliteLedger {
    pub(super) async fn list_dead(
        &self,
        filter: &DeadFilter,
        limit: u32,
    ) -> Result<Vec<DeadBatch>, LedgerError> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT id, run, pipeline, key, attempt, due, reason, error \
             FROM batches b WHERE state = 3",
        );
        push_filter(&mut query, filter);
        query
            .push(" ORDER BY due DESC, seq DESC LIMIT ")
            .push_bind(limit);
        let rows = query.build().fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| Cells::batches(row).dead_batch())
            .collect()
    }

    pub(super) async fn number_of_dead(&self, filter: &DeadFilter) -> Result<u64, LedgerError> {
        let mut query =
            QueryBuilder::<Sqlite>::new("SELECT count(*) AS number FROM batches b WHERE state = 3");
        push_filter(&mut query, filter);
        let row = query.build().fetch_one(&self.readers).await?;
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
        let dead = read_dead(
            &mut transaction,
            filter,
            " AND r.state <> 'cancelled'",
            limit,
        )
        .await?;
        let (pending, redriven, tally) = group::redrive(&dead, from, spacing);
        let rows = pending
            .iter()
            .map(|(seq, due)| json!([seq, due.as_millisecond()]));
        // It starts over, but for its attempts: what is remembered of its culprits ends, too.
        sqlx::query(
            "UPDATE batches SET state = 0, failures = 0, releases = 0, due = v.value ->> 1, reason = NULL, \
             error = NULL, deaths = 0, alone_on = NULL FROM json_each(?) v WHERE batches.seq = v.value ->> 0",
        )
        .bind(rows.collect::<Value>().to_string())
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
        let dead = read_dead(&mut transaction, filter, "", limit).await?;
        let (discarded, tally) = group::discard(&dead);
        sqlx::query(
            "UPDATE batches SET state = 4, due = ?, reason = ? WHERE seq IN (SELECT value FROM json_each(?))",
        )
        .bind(now.as_millisecond())
        .bind(DISCARDED)
        .bind(json!(discarded).to_string())
        .execute(&mut *transaction)
        .await?;
        write_tally(&mut transaction, &tally, now).await?;
        transaction.commit().await?;
        Ok(discarded.len() as u64)
    }
}

/// Dead batches, oldest first.
async fn read_dead(
    connection: &mut SqliteConnection,
    filter: &DeadFilter,
    and: &str,
    limit: u32,
) -> Result<Vec<Known<i64>>, LedgerError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT b.*, r.priority, r.state AS run_state FROM batches b JOIN runs r ON r.id = b.run WHERE b.state = 3",
    );
    query.push(and);
    push_filter(&mut query, filter);
    query.push(" ORDER BY b.due, b.seq LIMIT ").push_bind(limit);
    let rows = query.build().fetch_all(connection).await?;
    let read = |row| {
        let cells = Cells::batches(row);
        cells.known(cells.seq()?)
    };
    rows.iter().map(read).collect()
}

fn push_filter(query: &mut QueryBuilder<Sqlite>, filter: &DeadFilter) {
    let DeadFilter {
        run,
        pipeline,
        batch,
        key,
        reason,
        before,
    } = filter;
    if let Some(run) = run {
        query
            .push(" AND b.run = ")
            .push_bind(run.as_bytes().to_vec());
    }
    if let Some(pipeline) = pipeline {
        query
            .push(" AND b.pipeline = ")
            .push_bind(pipeline.as_str().to_owned());
    }
    if let Some(batch) = batch {
        query
            .push(" AND b.id = ")
            .push_bind(batch.as_bytes().to_vec());
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
