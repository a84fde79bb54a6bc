//! Commit markers, and those of files.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::json;
use shared::id::BatchId;
use shared::outcome::Completed;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Connection, Row, SqliteConnection};

use super::insert::{insert_rows, placeholders};
use super::{SqliteSink, damaged_or_away, retire_failed, sink_error};
use crate::sink::files::{Filed, Filing, Markers};
use crate::sink::marker::{outcome_json, read_outcome};
use crate::sink::{Committed, Marker, SinkError};

/// A marker to store.
pub(super) struct Stored<'a> {
    pub(super) marker: &'a Marker,
    /// The hash of the batch's rows.
    pub(super) digest: Vec<u8>,
    pub(super) completed: &'a Completed,
}

/// The stored marker of a batch, as the answer to `marker`.
pub(super) async fn find(
    connection: &mut SqliteConnection,
    marker: &Marker,
) -> Result<Option<Committed>, SinkError> {
    let found = find_all(connection, &[marker]).await?;
    Ok(found.into_values().next())
}

/// The stored markers of those batches that have one, as the answers to these.
pub(super) async fn find_all<'a>(
    connection: &mut SqliteConnection,
    markers: &[&'a Marker],
) -> Result<HashMap<BatchId, Committed>, SinkError> {
    let by_id = |marker: &&'a Marker| (marker.batch.to_string(), *marker);
    let asked: HashMap<String, &Marker> = markers.iter().map(by_id).collect();
    let ids: Vec<&String> = asked.keys().collect();
    let rows = sqlx::query(
        "SELECT batch, attempt, writer, outcome FROM batch_commits WHERE batch IN (SELECT value FROM json_each(?))",
    )
    .bind(json!(ids).to_string())
    .fetch_all(connection)
    .await
    .map_err(sink_error)?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let id: String = row.try_get(0).map_err(sink_error)?;
        let Some(marker) = asked.get(&id) else {
            continue;
        };
        let (attempt, writer, outcome) =
            read_marker(&row).map_err(|error| damaged_or_away(marker.batch, error))?;
        let completed = read_outcome(marker.batch, &outcome)?;
        let committed = Committed::by(marker, attempt, &writer, completed);
        found.insert(marker.batch, committed);
    }
    Ok(found)
}

fn read_marker(row: &SqliteRow) -> Result<(i64, String, String), sqlx::Error> {
    Ok((row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
}

pub(super) async fn insert_markers(
    connection: &mut SqliteConnection,
    markers: &[Stored<'_>],
) -> Result<(), SinkError> {
    const COLUMNS: usize = 6;
    let now = Timestamp::now().to_string();
    let outcomes = markers.iter().map(|stored| outcome_json(stored.completed));
    let outcomes = outcomes.collect::<Result<Vec<_>, _>>()?;
    let insert = |count: usize| {
        let values = placeholders(count, COLUMNS);
        format!(
            "INSERT INTO batch_commits (batch, attempt, writer, digest, outcome, committed_at) VALUES {values}"
        )
    };
    let bind = |arguments: &mut SqliteArguments, index: usize| {
        let Stored { marker, digest, .. } = &markers[index];
        arguments.add(marker.batch.to_string())?;
        arguments.add(i64::from(marker.attempt.number()))?;
        arguments.add(marker.writer.as_str().to_owned())?;
        arguments.add(digest.clone())?;
        arguments.add(outcomes[index].clone())?;
        arguments.add(now.clone())
    };
    insert_rows(connection, markers.len(), COLUMNS, insert, bind).await
}

#[async_trait]
impl Markers for SqliteSink {
    async fn filed(&self, batch: BatchId) -> Result<Option<Filed>, SinkError> {
        let stored: Option<(i64, String, String, Option<String>)> = sqlx::query_as(
            "SELECT attempt, writer, outcome, file FROM batch_commits LEFT JOIN batch_files USING (batch) \
             WHERE batch = ?",
        )
        .bind(batch.to_string())
        .fetch_optional(&self.pools.others)
        .await
        .map_err(|e| damaged_or_away(batch, e))?;
        let Some((attempt, writer, outcome, file)) = stored else {
            return Ok(None);
        };
        Ok(Some(Filed {
            attempt,
            writer,
            completed: read_outcome(batch, &outcome)?,
            file,
        }))
    }

    async fn file(
        &self,
        filings: &[Filing],
        file: Option<&str>,
    ) -> Result<Vec<BatchId>, SinkError> {
        let mut connection = self.pools.writer.acquire().await.map_err(sink_error)?;
        let filed = insert_all(&mut connection, filings, file).await;
        retire_failed(&mut connection, &filed);
        filed
    }
}

/// Stores all markers, or none.
async fn insert_all(
    connection: &mut SqliteConnection,
    filings: &[Filing],
    file: Option<&str>,
) -> Result<Vec<BatchId>, SinkError> {
    let begin = connection.begin_with("BEGIN IMMEDIATE").await;
    let mut transaction = begin.map_err(sink_error)?;
    let mut beaten = Vec::new();
    for filing in filings {
        if find(&mut transaction, &filing.marker).await?.is_some() {
            beaten.push(filing.marker.batch);
            continue;
        }
        insert_filing(&mut transaction, filing, file).await?;
    }
    if beaten.is_empty() {
        transaction.commit().await.map_err(sink_error)?;
    } else {
        transaction.rollback().await.map_err(sink_error)?;
    }
    Ok(beaten)
}

async fn insert_filing(
    connection: &mut SqliteConnection,
    filing: &Filing,
    file: Option<&str>,
) -> Result<(), SinkError> {
    let Filing {
        marker,
        digest,
        completed,
    } = filing;
    let stored = Stored {
        marker,
        digest: digest.clone(),
        completed,
    };
    insert_markers(connection, &[stored]).await?;
    if let Some(file) = file {
        sqlx::query("INSERT INTO batch_files (batch, file) VALUES (?, ?)")
            .bind(marker.batch.to_string())
            .bind(file.to_owned())
            .execute(connection)
            .await
            .map_err(sink_error)?;
    }
    Ok(())
}
