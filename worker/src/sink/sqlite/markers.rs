//! Commit markers, and those of files.

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::BatchId;
use shared::outcome::Completed;
use sqlx::{Connection, SqliteConnection};

use super::{SqliteSink, damaged_or_away, retire_failed, sink_error};
use crate::sink::files::{Filed, Filing, Markers};
use crate::sink::marker::{outcome_json, read_outcome};
use crate::sink::{Committed, Marker, SinkError};

/// The stored marker of a batch, as the answer to `marker`.
pub(super) async fn find(
    connection: &mut SqliteConnection,
    marker: &Marker,
) -> Result<Option<Committed>, SinkError> {
    let stored: Option<(i64, String, String)> =
        sqlx::query_as("SELECT attempt, writer, outcome FROM batch_commits WHERE batch = ?")
            .bind(marker.batch.to_string())
            .fetch_optional(connection)
            .await
            .map_err(|e| damaged_or_away(marker.batch, e))?;
    let Some((attempt, writer, outcome)) = stored else {
        return Ok(None);
    };
    let completed = read_outcome(marker.batch, &outcome)?;
    Ok(Some(Committed::by(marker, attempt, &writer, completed)))
}

pub(super) async fn insert_marker(
    connection: &mut SqliteConnection,
    marker: &Marker,
    digest: Vec<u8>,
    completed: &Completed,
) -> Result<(), SinkError> {
    sqlx::query(
        "INSERT INTO batch_commits (batch, attempt, writer, digest, outcome, committed_at) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(marker.batch.to_string())
    .bind(i64::from(marker.attempt.number()))
    .bind(marker.writer.as_str().to_owned())
    .bind(digest)
    .bind(outcome_json(completed)?)
    .bind(Timestamp::now().to_string())
    .execute(connection)
    .await
    .map_err(sink_error)?;
    Ok(())
}

#[async_trait]
impl Markers for SqliteSink {
    async fn filed(&self, batch: BatchId) -> Result<Option<Filed>, SinkError> {
        let stored: Option<(i64, String, String, Option<String>)> = sqlx::query_as(
            "SELECT attempt, writer, outcome, file FROM batch_commits LEFT JOIN batch_files USING (batch) \
             WHERE batch = ?",
        )
        .bind(batch.to_string())
        .fetch_optional(&self.pool)
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
        let mut connection = self.pool.acquire().await.map_err(sink_error)?;
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
    insert_marker(connection, marker, digest.clone(), completed).await?;
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
