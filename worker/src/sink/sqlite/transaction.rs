//! Writes groups of batches into an SQLite file, each group in one transaction, which holds the file's one write lock
//! from its beginning.

use std::sync::Arc;

use async_trait::async_trait;
use shared::outcome::Completed;
use sqlx::{Connection, SqliteConnection};

use super::markers::{Stored, find, find_all, insert_markers};
use super::{Pools, retire_failed, sink_error};
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

    /// Stores the rows of all these batches, of which none is stored yet; gives the outcome to store with each. Many
    /// statements for few rows each are what a group is to save.
    async fn write(
        &self,
        connection: &mut SqliteConnection,
        group: &[&Write<Arc<Rows>>],
    ) -> Result<Vec<Completed>, SinkError>;

    /// Hears that a group, and what it needed, is in.
    fn committed(&self, _group: &[&Write<Arc<Rows>>]) {}
}

/// Writes groups.
pub(super) struct Writer<W> {
    pub(super) pools: Pools,
    pub(super) rows: W,
}

#[async_trait]
impl<W: RowWriter> GroupWriter for Writer<W> {
    type Rows = Arc<Rows>;

    async fn write(&self, group: &[&Write<Arc<Rows>>]) -> Result<Vec<Committed>, SinkError> {
        let mut connection = self.pools.writer.acquire().await.map_err(sink_error)?;
        let written = self.write_all(&mut connection, group).await;
        retire_failed(&mut connection, &written);
        written
    }

    async fn look(&self, marker: &Marker) -> Result<Option<Committed>, SinkError> {
        let mut connection = self.pools.others.acquire().await.map_err(sink_error)?;
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
        let committed = self.write_new(&mut transaction, group).await?;
        shared::failpoint::reach("w.sink.before_commit");
        transaction.commit().await.map_err(sink_error)?;
        shared::failpoint::reach("w.sink.committed");
        self.rows.committed(group);
        Ok(committed)
    }

    /// Writes what is not stored yet.
    async fn write_new(
        &self,
        connection: &mut SqliteConnection,
        group: &[&Write<Arc<Rows>>],
    ) -> Result<Vec<Committed>, SinkError> {
        let markers: Vec<&Marker> = group.iter().map(|write| &write.marker).collect();
        // Nobody else can write until this transaction ends, so this answer stays true.
        let mut before = find_all(connection, &markers).await?;
        let is_new = |write: &&&Write<_>| !before.contains_key(&write.marker.batch);
        let new: Vec<&Write<_>> = group.iter().filter(is_new).copied().collect();
        let completed = self.rows.write(connection, &new).await?;
        let stored = new.iter().zip(&completed).map(|(write, completed)| Stored {
            marker: &write.marker,
            digest: digest(&write.rows),
            completed,
        });
        insert_markers(connection, &stored.collect::<Vec<_>>()).await?;
        let mut now = completed.into_iter();
        let committed = markers
            .iter()
            .map(|marker| match before.remove(&marker.batch) {
                Some(before) => Committed::Before(before.into_completed()),
                None => Committed::Now(now.next().expect("one for each that is new")),
            });
        Ok(committed.collect())
    }
}
