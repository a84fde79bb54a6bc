//! What becomes of a batch's rows in the SQLite file of the default sink.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::outcome::Completed;
use shared::search_console::{Dimension, DimensionSet};
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, Row as _, SqliteConnection};

use super::insert::{in_a_row, insert_rows, placeholders};
use super::sink_error;
use super::transaction::RowWriter;
use crate::handler::Rows;
use crate::jobs::search_console::slice_rows::{Row, Slice};
use crate::json_rows::JsonRows;
use crate::sink::SinkError;
use crate::sink::marker::{other_form, stored, with_counts};
use crate::sink::schema::{self, KnownSets};
use crate::sink::waiting::Write;

/// Documents go into `results`, slices of Search Analytics into the tables of their dimension set.
#[derive(Default)]
pub(super) struct ResultsAndSlices {
    known_sets: KnownSets,
}

#[async_trait]
impl RowWriter for ResultsAndSlices {
    async fn prepare(
        &self,
        connection: &mut SqliteConnection,
        group: &[&Write<Arc<Rows>>],
    ) -> Result<(), SinkError> {
        let unknown = |set: &&DimensionSet| !self.known_sets.contains(set);
        let new_sets: HashSet<&DimensionSet> = sets(group).filter(unknown).collect();
        for set in new_sets {
            make_tables(connection, set).await?;
        }
        Ok(())
    }

    async fn write(
        &self,
        connection: &mut SqliteConnection,
        group: &[&Write<Arc<Rows>>],
    ) -> Result<Vec<Completed>, SinkError> {
        insert_json(connection, group).await?;
        let mut all = Vec::with_capacity(group.len());
        for Write { marker, rows, .. } in group {
            all.push(match &**rows {
                Rows::None => with_counts(&marker.completed, 0, 0),
                Rows::Copy(_) => return Err(other_form()),
                Rows::Json(rows) => with_counts(&marker.completed, rows.len() as u64, 0),
                Rows::Slice(slice) => replace_slice(connection, slice, &marker.completed).await?,
            });
        }
        Ok(all)
    }

    /// Tables of a set exist once the transaction that made them is committed.
    fn committed(&self, group: &[&Write<Arc<Rows>>]) {
        for set in sets(group) {
            self.known_sets.add(set);
        }
    }
}

/// The dimension sets of a group's slices.
fn sets<'a>(group: &'a [&Write<Arc<Rows>>]) -> impl Iterator<Item = &'a DimensionSet> {
    group.iter().filter_map(|write| match &*write.rows {
        Rows::Slice(slice) => Some(&slice.id.dimensions),
        Rows::None | Rows::Json(_) | Rows::Copy(_) => None,
    })
}

async fn make_tables(
    connection: &mut SqliteConnection,
    set: &DimensionSet,
) -> Result<(), SinkError> {
    for statement in schema::sqlite(set) {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *connection)
            .await
            .map_err(sink_error)?;
    }
    Ok(())
}

/// Inserts the documents of all these batches.
async fn insert_json(
    connection: &mut SqliteConnection,
    group: &[&Write<Arc<Rows>>],
) -> Result<(), SinkError> {
    let documents: Vec<_> = group.iter().filter_map(|write| documents(write)).collect();
    let places = in_a_row(documents.iter().map(|(_, rows)| rows.len()));
    let insert = |values: usize| {
        format!(
            "INSERT INTO results (batch, \"index\", json) VALUES {}",
            placeholders(values, 3)
        )
    };
    let bind = |arguments: &mut SqliteArguments, index: usize| {
        let (of, number) = places[index];
        let (batch, rows) = &documents[of];
        arguments.add(Arc::clone(batch))?;
        arguments.add(i64::try_from(number)?)?;
        arguments.add(rows[number].to_owned())
    };
    insert_rows(connection, places.len(), 3, insert, bind).await
}

/// A batch that has documents, and these.
fn documents(write: &Write<Arc<Rows>>) -> Option<(Arc<String>, &JsonRows)> {
    match &*write.rows {
        Rows::Json(rows) => Some((Arc::new(write.marker.batch.to_string()), rows)),
        Rows::None | Rows::Slice(_) | Rows::Copy(_) => None,
    }
}

/// Replaces the rows of a slice, unless they are the same; gives the outcome to store.
async fn replace_slice(
    connection: &mut SqliteConnection,
    slice: &Slice,
    completed: &Completed,
) -> Result<Completed, SinkError> {
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
