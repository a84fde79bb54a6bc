//! Writes groups of batches into the SQLite file, each group in one transaction.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::search_console::{Dimension, DimensionSet};
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, Connection, Row as _, SqliteConnection, SqlitePool};

use super::insert::{insert_rows, placeholders};
use super::markers::{find, insert_marker};
use super::{retire_failed, sink_error};
use crate::handler::Rows;
use crate::jobs::search_console::slice_rows::{Row, Slice};
use crate::sink::group::GroupWriter;
use crate::sink::marker::{digest, stored, with_counts};
use crate::sink::schema::{self, KnownSets};
use crate::sink::waiting::Write;
use crate::sink::{Committed, Marker, SinkError};

pub(super) struct Writer {
    pub(super) pool: SqlitePool,
    pub(super) known_sets: KnownSets,
}

#[async_trait]
impl GroupWriter for Writer {
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

impl Writer {
    async fn write_all(
        &self,
        connection: &mut SqliteConnection,
        group: &[&Write<Arc<Rows>>],
    ) -> Result<Vec<Committed>, SinkError> {
        let begin = connection.begin_with("BEGIN IMMEDIATE").await;
        let mut transaction = begin.map_err(sink_error)?;
        let mut committed = Vec::with_capacity(group.len());
        let mut new_sets = Vec::new();
        for write in group {
            if let Rows::Slice(slice) = &*write.rows {
                self.make_tables(&slice.id.dimensions, &mut transaction, &mut new_sets)
                    .await?;
            }
            committed.push(write_one(&mut transaction, write).await?);
        }
        shared::failpoint::reach("w.sink.before_commit");
        transaction.commit().await.map_err(sink_error)?;
        shared::failpoint::reach("w.sink.committed");
        for set in new_sets {
            self.known_sets.add(&set);
        }
        Ok(committed)
    }

    /// Tables of a set exist once the transaction that made them is committed.
    async fn make_tables(
        &self,
        set: &DimensionSet,
        connection: &mut SqliteConnection,
        new_sets: &mut Vec<DimensionSet>,
    ) -> Result<(), SinkError> {
        if self.known_sets.contains(set) || new_sets.contains(set) {
            return Ok(());
        }
        for statement in schema::sqlite(set) {
            sqlx::query(AssertSqlSafe(statement))
                .execute(&mut *connection)
                .await
                .map_err(sink_error)?;
        }
        new_sets.push(set.clone());
        Ok(())
    }
}

async fn write_one(
    connection: &mut SqliteConnection,
    write: &Write<Arc<Rows>>,
) -> Result<Committed, SinkError> {
    let marker = &write.marker;
    // Nobody else can write until this transaction ends, so this answer stays true.
    if let Some(before) = find(connection, marker).await? {
        return Ok(Committed::Before(before.into_completed()));
    }
    let completed = match &*write.rows {
        Rows::None => with_counts(&marker.completed, 0, 0),
        Rows::Json(rows) => {
            insert_json(connection, marker, rows).await?;
            with_counts(&marker.completed, rows.len() as u64, 0)
        }
        Rows::Slice(slice) => replace_slice(connection, slice, &marker.completed).await?,
    };
    insert_marker(connection, marker, digest(&write.rows), &completed).await?;
    Ok(Committed::Now(completed))
}

async fn insert_json(
    connection: &mut SqliteConnection,
    marker: &Marker,
    rows: &[Box<serde_json::value::RawValue>],
) -> Result<(), SinkError> {
    let batch = Arc::new(marker.batch.to_string());
    let insert = |values: usize| {
        format!(
            "INSERT INTO results (batch, \"index\", json) VALUES {}",
            placeholders(values, 3)
        )
    };
    let bind = |arguments: &mut SqliteArguments, index: usize| {
        arguments.add(Arc::clone(&batch))?;
        arguments.add(i64::try_from(index)?)?;
        arguments.add(rows[index].get().to_owned())
    };
    insert_rows(connection, rows.len(), 3, insert, bind).await
}

/// Replaces the rows of a slice, unless they are the same; gives the outcome to store.
async fn replace_slice(
    connection: &mut SqliteConnection,
    slice: &Slice,
    completed: &shared::outcome::Completed,
) -> Result<shared::outcome::Completed, SinkError> {
    let hash = slice.rows.content_hash().to_bytes();
    let (number, stored_hash) = upsert_slice(connection, slice).await?;
    let is_unchanged = stored_hash.as_deref() == Some(&hash[..]);
    if !is_unchanged {
        let table = schema::rows_table(&slice.id.dimensions);
        sqlx::query(AssertSqlSafe(format!(
            "DELETE FROM {table} WHERE slice = ?"
        )))
        .bind(number)
        .execute(&mut *connection)
        .await
        .map_err(sink_error)?;
        insert_slice_rows(connection, slice, number, &table).await?;
        sqlx::query(
            "UPDATE search_analytics_slices SET rows = ?, clicks = ?, impressions = ?, version = version + 1, \
             content_hash = ?, aggregation = ?, api_calls = ?, fetched_at = ? WHERE slice = ?",
        )
        .bind(stored(slice.rows.len() as u64)?)
        .bind(stored(slice.rows.clicks())?)
        .bind(stored(slice.rows.impressions())?)
        .bind(hash.to_vec())
        .bind(slice.aggregation.clone())
        .bind(stored(slice.api_calls)?)
        .bind(slice.fetched_at.to_string())
        .bind(number)
        .execute(&mut *connection)
        .await
        .map_err(sink_error)?;
    }
    reactivate_property(connection, &slice.id.property).await?;
    let written = if is_unchanged {
        0
    } else {
        slice.rows.len() as u64
    };
    Ok(with_counts(completed, written, u64::from(is_unchanged)))
}

/// The slice's number and the hash of its stored rows. What is known of it apart from its rows is new now.
async fn upsert_slice(
    connection: &mut SqliteConnection,
    slice: &Slice,
) -> Result<(i64, Option<Vec<u8>>), SinkError> {
    let row = sqlx::query(
        "INSERT INTO search_analytics_slices \
         (site_url, search_type, dimension_set, date, state, is_final, truncated, error, verified_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (site_url, search_type, dimension_set, date) DO UPDATE SET state = excluded.state, \
         is_final = excluded.is_final, truncated = excluded.truncated, error = excluded.error, \
         verified_at = excluded.verified_at RETURNING slice, content_hash",
    )
    .bind(slice.id.property.clone())
    .bind(slice.id.search_type.as_str())
    .bind(slice.id.dimensions.to_string())
    .bind(slice.id.date.to_string())
    .bind(slice.state())
    .bind(slice.is_final)
    .bind(slice.truncated)
    .bind(slice.remark.clone())
    .bind(slice.fetched_at.to_string())
    .fetch_one(connection)
    .await
    .map_err(sink_error)?;
    Ok((
        row.try_get(0).map_err(sink_error)?,
        row.try_get(1).map_err(sink_error)?,
    ))
}

async fn insert_slice_rows(
    connection: &mut SqliteConnection,
    slice: &Slice,
    number: i64,
    table: &str,
) -> Result<(), SinkError> {
    let columns = schema::load_columns(&slice.id.dimensions);
    let has_keys = slice.id.dimensions.dimensions() != [Dimension::Date];
    let insert = |values: usize| {
        let names = columns.join(", ");
        format!(
            "INSERT INTO {table} (n, {names}) VALUES {}",
            placeholders(values, columns.len() + 1)
        )
    };
    let bind = |arguments: &mut SqliteArguments, index: usize| {
        let row: Row<'_> = slice.rows.row(index);
        arguments.add(i64::try_from(index)?)?;
        arguments.add(i64::try_from(row.numbers.clicks)?)?;
        arguments.add(i64::try_from(row.numbers.impressions)?)?;
        arguments.add(row.numbers.position)?;
        arguments.add(number)?;
        if has_keys {
            for key in row.keys() {
                arguments.add(key.to_owned())?;
            }
        }
        Ok(())
    };
    insert_rows(
        connection,
        slice.rows.len(),
        columns.len() + 1,
        insert,
        bind,
    )
    .await
}

/// A slice that came through shows that the property can be read, unless a quota is known to end later.
async fn reactivate_property(
    connection: &mut SqliteConnection,
    property: &str,
) -> Result<(), SinkError> {
    let now = Timestamp::now().to_string();
    sqlx::query(
        "UPDATE search_analytics_properties SET state = 'active', detail = NULL, until = NULL, checked_at = ?1 \
         WHERE site_url = ?2 AND state <> 'active' AND (until IS NULL OR until <= ?1)",
    )
    .bind(now)
    .bind(property.to_owned())
    .execute(connection)
    .await
    .map_err(sink_error)?;
    Ok(())
}
