//! Writes groups of batches into an SQLite file, each group in one transaction, which holds the file's one write lock
//! from its beginning.

use std::sync::Arc;

use async_trait::async_trait;
use shared::outcome::Completed;
use sqlx::{Connection, SqliteConnection, SqlitePool};

use super::markers::{find, insert_marker};
use super::{retire_failed, sink_error};
use crate::handler::Rows;
use crate::sink::group::GroupWriter;
use crate::sink::marker::digest;
use crate::sink::waiting::Write;
use crate::sink::{Committed, Marker, SinkError};

/// Where rows of batches go.
#[async_trait]
pub(super) trait RowWriter: Send + Sync + 'static {
    /// Sees to what a group needs before its first row.
    async fn prepare(
        &self,
        _connection: &mut SqliteConnection,
        _group: &[&Write<Arc<Rows>>],
    ) -> Result<(), SinkError> {
        Ok(())
    }

    /// Stores the rows of a batch; gives the outcome to store with them.
    async fn write(
        &self,
        connection: &mut SqliteConnection,
        marker: &Marker,
        rows: &Rows,
    ) -> Result<Completed, SinkError>;

    /// Hears that a group, and what it needed, is in.
    fn committed(&self, _group: &[&Write<Arc<Rows>>]) {}
}

/// Writes groups.
pub(super) struct Writer<W> {
    pub(super) pool: SqlitePool,
    pub(super) rows: W,
}

#[async_trait]
impl<W: RowWriter> GroupWriter for Writer<W> {
    type Rows = Arc<Rows>;

    async fn write(&self, group: &[&Write<Arc<Rows>>]) -> Result<Vec<Committed>, SinkError> {
        let mut connection = self.pool.acquire().await.map_err(sink_error)?;
        let written = self.write_all(&mut connection, group).await;
        retire_failed(&mut connection, &written);
        written
    }

    async fn look(&self, marker: &Marker) -> Result<Option<Committed>, SinkError> {
        let mut connection = self.pool.acquire().await.map_err(sink_error)?;
        find(&mut connection, marker).await
    }
}

impl<W: RowWriter> Writer<W> {
    async fn write_all(
        &self,
        connection: &mut SqliteConnection,
        group: &[&Write<Arc<Rows>>],
    ) -> Result<Vec<Committed>, SinkError> {
        let begin = connection.begin_with("BEGIN IMMEDIATE").await;
        let mut transaction = begin.map_err(sink_error)?;
        self.rows.prepare(&mut transaction, group).await?;
        let mut committed = Vec::with_capacity(group.len());
        for Write { marker, rows, .. } in group {
            committed.push(self.write_one(&mut transaction, marker, rows).await?);
        }
        shared::failpoint::reach("w.sink.before_commit");
        transaction.commit().await.map_err(sink_error)?;
        shared::failpoint::reach("w.sink.committed");
        self.rows.committed(group);
        Ok(committed)
    }

    async fn write_one(
        &self,
        connection: &mut SqliteConnection,
        marker: &Marker,
        rows: &Rows,
    ) -> Result<Committed, SinkError> {
        // Nobody else can write until this transaction ends, so this answer stays true.
        if let Some(before) = find(connection, marker).await? {
            return Ok(Committed::Before(before.into_completed()));
        }
        let completed = self.rows.write(connection, marker, rows).await?;
        insert_marker(connection, marker, digest(rows), &completed).await?;
        Ok(Committed::Now(completed))
    }
}
