//! Writes groups of batches for the table `results`: one statement, one trip, one disk sync for all of them.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use shared::outcome::Completed;
use sqlx::PgPool;

use super::markers::{self, insert_markers};
use super::{bounded, committed, find};
use crate::handler::Rows;
use crate::sink::group::GroupWriter;
use crate::sink::marker::{digest, stored, with_counts};
use crate::sink::waiting::Write;
use crate::sink::{Committed, Marker, SinkError};

/// Rows only of batches whose marker was the first.
const STATEMENT: &str = concat!(
    "WITH marker AS (",
    insert_markers!(),
    "), result AS ( \
  INSERT INTO results (batch, \"index\", json) \
  SELECT marker.batch, new.index, new.json::json \
  FROM unnest($6::text[], $7::integer[], $8::text[]) AS new (batch, index, json) \
  JOIN marker ON marker.batch = new.batch::uuid \
) SELECT batch::text FROM marker"
);

pub(super) struct Writer {
    pub(super) pool: PgPool,
}

#[derive(Default)]
struct Columns {
    markers: markers::Columns,
    batches: Vec<String>,
    indexes: Vec<i32>,
    results: Vec<String>,
}

#[async_trait]
impl GroupWriter for Writer {
    type Rows = Arc<Rows>;

    async fn write(&self, group: &[&Write<Arc<Rows>>]) -> Result<Vec<Committed>, SinkError> {
        let mut columns = Columns::default();
        let mut completed = Vec::with_capacity(group.len());
        for write in group {
            completed.push(columns.add(write)?);
        }
        let work = columns
            .markers
            .query(STATEMENT)
            .bind(columns.batches)
            .bind(columns.indexes)
            .bind(columns.results)
            .fetch_all(&self.pool);
        // One statement is its own transaction: before it is sent is the last moment before its commit.
        shared::failpoint::reach("w.sink.before_commit");
        let first: Vec<String> = bounded(work).await?;
        shared::failpoint::reach("w.sink.committed");
        let first: HashSet<String> = first.into_iter().collect();
        committed(&self.pool, group, completed, &first).await
    }

    async fn look(&self, marker: &Marker) -> Result<Option<Committed>, SinkError> {
        find(&self.pool, marker).await
    }
}

impl Columns {
    /// Adds a batch; gives the outcome that is stored with it.
    fn add(&mut self, write: &Write<Arc<Rows>>) -> Result<Completed, SinkError> {
        let Write { marker, rows, .. } = write;
        let batch = marker.batch.to_string();
        let mut written = 0;
        if let Rows::Json(rows) = &**rows {
            for (index, row) in rows.iter().enumerate() {
                let index = i32::try_from(index)
                    .map_err(|e| super::sink_error(sqlx::Error::Encode(Box::new(e))))?;
                self.batches.push(batch.clone());
                self.indexes.push(index);
                self.results.push(row.to_owned());
            }
            written = rows.len() as u64;
        }
        // Counts are checked here, where they can still be refused for this batch alone.
        stored(written)?;
        let completed = with_counts(&marker.completed, written, 0);
        self.markers.add(marker, digest(rows), &completed)?;
        Ok(completed)
    }
}
