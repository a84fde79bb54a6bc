//! Writes groups of batches without slices: one statement, one trip, one disk sync for all of them.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::PgPool;

use super::{bounded, find};
use crate::handler::Rows;
use crate::sink::group::{GroupWriter, Write};
use crate::sink::marker::{digest, outcome_json, stored, with_counts};
use crate::sink::{Committed, Marker, SinkError};

/// Markers in the order of their batches, so that two workers that store the same ones never wait for
/// each other in a circle; rows only of batches whose marker was the first.
const STATEMENT: &str = "\
WITH marker AS ( \
  INSERT INTO batch_commits (batch, attempt, writer, digest, outcome, committed_at) \
  SELECT batch::uuid, attempt, writer, digest, outcome, now() \
  FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bytea[], $5::text[]) \
       AS new (batch, attempt, writer, digest, outcome) ORDER BY 1 \
  ON CONFLICT (batch) DO NOTHING RETURNING batch \
), result AS ( \
  INSERT INTO results (batch, \"index\", json) \
  SELECT marker.batch, new.index, new.json::json \
  FROM unnest($6::text[], $7::integer[], $8::text[]) AS new (batch, index, json) \
  JOIN marker ON marker.batch = new.batch::uuid \
) SELECT batch::text FROM marker";

pub(super) struct Writer {
    pub(super) pool: PgPool,
}

#[derive(Default)]
struct Columns {
    batches: Vec<String>,
    attempts: Vec<i64>,
    writers: Vec<String>,
    digests: Vec<Vec<u8>>,
    outcomes: Vec<String>,
    result_batches: Vec<String>,
    result_indexes: Vec<i32>,
    results: Vec<String>,
}

#[async_trait]
impl GroupWriter for Writer {
    async fn write(&mut self, group: &[&Write]) -> Result<Vec<Committed>, SinkError> {
        let mut columns = Columns::default();
        let mut completed = Vec::with_capacity(group.len());
        for write in group {
            completed.push(columns.add(write)?);
        }
        let work = sqlx::query_scalar(STATEMENT)
            .bind(columns.batches)
            .bind(columns.attempts)
            .bind(columns.writers)
            .bind(columns.digests)
            .bind(columns.outcomes)
            .bind(columns.result_batches)
            .bind(columns.result_indexes)
            .bind(columns.results)
            .fetch_all(&self.pool);
        // One statement is its own transaction: before it is sent is the last moment before its commit.
        shared::failpoint::reach("w.sink.before_commit");
        let stored: Vec<String> = bounded(work).await?;
        shared::failpoint::reach("w.sink.committed");
        let stored: HashSet<String> = stored.into_iter().collect();
        let mut committed = Vec::with_capacity(group.len());
        for (write, completed) in group.iter().zip(completed) {
            committed.push(if stored.contains(&write.marker.batch.to_string()) {
                Committed::Now(completed)
            } else {
                self.before(&write.marker).await?
            });
        }
        Ok(committed)
    }

    async fn look(&mut self, marker: &Marker) -> Result<Option<Committed>, SinkError> {
        find(&self.pool, marker).await
    }
}

impl Writer {
    async fn before(&self, marker: &Marker) -> Result<Committed, SinkError> {
        let missing = || SinkError::Unavailable(sqlx::Error::RowNotFound.into());
        let found = find(&self.pool, marker).await?.ok_or_else(missing)?;
        Ok(Committed::Before(found.into_completed()))
    }
}

impl Columns {
    /// Adds a batch; gives the outcome that is stored with it.
    fn add(&mut self, write: &Write) -> Result<shared::outcome::Completed, SinkError> {
        let Write { marker, rows } = write;
        let batch = marker.batch.to_string();
        let mut written = 0;
        if let Rows::Json(rows) = &**rows {
            for (index, row) in rows.iter().enumerate() {
                let index = i32::try_from(index)
                    .map_err(|e| super::sink_error(sqlx::Error::Encode(Box::new(e))))?;
                self.result_batches.push(batch.clone());
                self.result_indexes.push(index);
                self.results.push(row.get().to_owned());
            }
            written = rows.len() as u64;
        }
        // Counts are checked here, where they can still be refused for this batch alone.
        stored(written)?;
        let completed = with_counts(&marker.completed, written, 0);
        self.batches.push(batch);
        self.attempts.push(i64::from(marker.attempt.number()));
        self.writers.push(marker.writer.as_str().to_owned());
        self.digests.push(digest(rows));
        self.outcomes.push(outcome_json(&completed)?);
        Ok(completed)
    }
}
