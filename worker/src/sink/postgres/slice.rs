//! Commits one slice: its record is locked, its rows are replaced or found unchanged, the marker goes in,
//! all in one transaction. Two batches of one slice take turns at the record; two deliveries of one batch
//! too, and the second finds the marker.

use jiff::Timestamp;
use shared::search_console::{Dimension, DimensionSet};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::copy::Encoder;
use super::{PostgresSink, before, bounded, lock_making_tables};
use crate::jobs::search_console::slice_rows::Slice;
use crate::sink::marker::{outcome_json, stored, with_counts};
use crate::sink::schema;
use crate::sink::{Committed, Marker, SinkError};

impl PostgresSink {
    pub(super) async fn commit_slice(
        &self,
        marker: &Marker,
        slice: &Slice,
    ) -> Result<Committed, SinkError> {
        self.make_tables(&slice.id.dimensions).await?;
        // Encoding problems are found before the database is bothered.
        let sums = Sums::of(slice)?;
        let _turn = self.slices.acquire().await;
        let mut connection = bounded(self.pool.acquire()).await?;
        match bounded(replace(&mut connection, marker, slice, &sums)).await {
            Ok(Some(committed)) => Ok(committed),
            Ok(None) => {
                drop(connection);
                before(&self.pool, marker).await
            }
            Err(error) => {
                // Half a transaction, perhaps a hanging connection: nobody else should get it.
                connection.close_on_drop();
                Err(error)
            }
        }
    }

    async fn make_tables(&self, set: &DimensionSet) -> Result<(), SinkError> {
        if self.known_sets.contains(set) {
            return Ok(());
        }
        bounded(async {
            let mut transaction = self.pool.begin().await?;
            lock_making_tables(&mut transaction).await?;
            let exists: Option<String> = sqlx::query_scalar("SELECT to_regclass($1)::text")
                .bind(set.table())
                .fetch_one(&mut *transaction)
                .await?;
            if exists.is_none() {
                for statement in schema::postgres(set) {
                    sqlx::query(AssertSqlSafe(statement))
                        .execute(&mut *transaction)
                        .await?;
                }
            }
            transaction.commit().await
        })
        .await?;
        self.known_sets.add(set);
        Ok(())
    }
}

/// What is stored of a slice beside its rows.
struct Sums {
    hash: Vec<u8>,
    rows: i64,
    clicks: i64,
    impressions: i64,
    api_calls: i64,
}

impl Sums {
    fn of(slice: &Slice) -> Result<Self, SinkError> {
        Ok(Self {
            hash: slice.rows.content_hash().to_bytes().to_vec(),
            rows: stored(slice.rows.len() as u64)?,
            clicks: stored(slice.rows.clicks())?,
            impressions: stored(slice.rows.impressions())?,
            api_calls: stored(slice.api_calls)?,
        })
    }
}

/// `None` when the batch's marker was there already.
async fn replace(
    connection: &mut PgConnection,
    marker: &Marker,
    slice: &Slice,
    sums: &Sums,
) -> Result<Option<Committed>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let (number, stored_hash) = lock_record(&mut transaction, slice).await?;
    let is_unchanged = stored_hash.as_deref() == Some(&sums.hash[..]);
    let written = if is_unchanged {
        0
    } else {
        slice.rows.len() as u64
    };
    let completed = with_counts(&marker.completed, written, u64::from(is_unchanged));
    let outcome = outcome_json(&completed).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
    if !insert_marker(&mut transaction, marker, &sums.hash, outcome).await? {
        transaction.rollback().await?;
        return Ok(None);
    }
    if !is_unchanged {
        if stored_hash.is_some() {
            let table = schema::rows_table(&slice.id.dimensions);
            let delete = AssertSqlSafe(format!("DELETE FROM {table} WHERE slice = $1"));
            sqlx::query(delete)
                .bind(number)
                .execute(&mut *transaction)
                .await?;
        }
        load(&mut transaction, slice, number).await?;
        update_record(&mut transaction, slice, sums, number).await?;
    }
    reactivate_property(&mut transaction, &slice.id.property).await?;
    shared::failpoint::reach("w.sink.before_commit");
    transaction.commit().await?;
    shared::failpoint::reach("w.sink.committed");
    Ok(Some(Committed::Now(completed)))
}

/// The slice's number and the hash of its stored rows. What is known of it apart from its rows is new now.
async fn lock_record(
    connection: &mut PgConnection,
    slice: &Slice,
) -> Result<(i32, Option<Vec<u8>>), sqlx::Error> {
    sqlx::query_as(
        "INSERT INTO search_analytics_slices \
         (site_url, search_type, dimension_set, date, state, is_final, truncated, error, verified_at) \
         VALUES ($1, $2, $3, $4::text::date, $5, $6, $7, $8, $9::text::timestamptz) \
         ON CONFLICT (site_url, search_type, dimension_set, date) DO UPDATE SET state = excluded.state, \
         is_final = excluded.is_final, truncated = excluded.truncated, error = excluded.error, \
         verified_at = excluded.verified_at RETURNING slice, content_hash",
    )
    .bind(&slice.id.property)
    .bind(slice.id.search_type.as_str())
    .bind(slice.id.dimensions.to_string())
    .bind(slice.id.date.to_string())
    .bind(slice.state())
    .bind(slice.is_final)
    .bind(slice.truncated)
    .bind(&slice.remark)
    .bind(slice.fetched_at.to_string())
    .fetch_one(connection)
    .await
}

/// Whether it was the first.
async fn insert_marker(
    connection: &mut PgConnection,
    marker: &Marker,
    digest: &[u8],
    outcome: String,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO batch_commits (batch, attempt, writer, digest, outcome, committed_at) \
         VALUES ($1::text::uuid, $2, $3, $4, $5, $6::text::timestamptz) ON CONFLICT (batch) DO NOTHING",
    )
    .bind(marker.batch.to_string())
    .bind(i64::from(marker.attempt.number()))
    .bind(marker.writer.as_str())
    .bind(digest)
    .bind(outcome)
    .bind(Timestamp::now().to_string())
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

async fn load(
    connection: &mut PgConnection,
    slice: &Slice,
    number: i32,
) -> Result<(), sqlx::Error> {
    if slice.rows.is_empty() {
        return Ok(());
    }
    let set = &slice.id.dimensions;
    let keys = set
        .dimensions()
        .iter()
        .filter(|dimension| **dimension != Dimension::Date)
        .count();
    let columns = schema::load_columns(set).join(", ");
    let table = schema::rows_table(set);
    let statement = format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)");
    let mut copy = connection.copy_in_raw(&statement).await?;
    let mut encoder = Encoder::new(&slice.rows, number, keys);
    while let Some(chunk) = encoder.next_chunk() {
        copy.send(chunk).await?;
    }
    copy.finish().await?;
    Ok(())
}

async fn update_record(
    connection: &mut PgConnection,
    slice: &Slice,
    sums: &Sums,
    number: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE search_analytics_slices SET rows = $2, clicks = $3, impressions = $4, version = version + 1, \
         content_hash = $5, aggregation = $6, api_calls = $7, fetched_at = $8::text::timestamptz WHERE slice = $1",
    )
    .bind(number)
    .bind(sums.rows)
    .bind(sums.clicks)
    .bind(sums.impressions)
    .bind(&sums.hash)
    .bind(&slice.aggregation)
    .bind(sums.api_calls)
    .bind(slice.fetched_at.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// A slice that came through shows that the property can be read, unless a quota is known to end later.
/// A property that is active already is neither written nor locked.
async fn reactivate_property(
    connection: &mut PgConnection,
    property: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE search_analytics_properties SET state = 'active', detail = NULL, until = NULL, checked_at = now() \
         WHERE site_url = $1 AND state <> 'active' AND (until IS NULL OR until <= now())",
    )
    .bind(property)
    .execute(connection)
    .await?;
    Ok(())
}
