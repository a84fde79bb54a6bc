//! Commit markers, many at once; and those of files.

use std::collections::HashSet;

use async_trait::async_trait;
use shared::id::BatchId;
use shared::outcome::Completed;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryScalar;
use sqlx::{PgConnection, Postgres};

use super::{PostgresSink, bounded};
use crate::sink::files::{Filed, Filing, Markers};
use crate::sink::marker::{outcome_json, read_outcome};
use crate::sink::{Marker, SinkError};

/// Inserts the markers of [`Columns`], but those that are there, and returns the batches of those that were the
/// first. In the order of the batches, so that two workers that store the same ones never wait for each other in a
/// circle.
macro_rules! insert_markers {
    () => {
        "INSERT INTO batch_commits (batch, attempt, writer, digest, outcome, committed_at) \
         SELECT batch::uuid, attempt, writer, digest, outcome, now() \
         FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bytea[], $5::text[]) \
              AS new (batch, attempt, writer, digest, outcome) ORDER BY 1 \
         ON CONFLICT (batch) DO NOTHING RETURNING batch"
    };
}
pub(super) use insert_markers;

/// Markers by columns, as one statement takes them.
#[derive(Default)]
pub(super) struct Columns {
    batches: Vec<String>,
    attempts: Vec<i64>,
    writers: Vec<String>,
    digests: Vec<Vec<u8>>,
    outcomes: Vec<String>,
}

impl Columns {
    pub(super) fn add(
        &mut self,
        marker: &Marker,
        digest: Vec<u8>,
        completed: &Completed,
    ) -> Result<(), SinkError> {
        self.outcomes.push(outcome_json(completed)?);
        self.batches.push(marker.batch.to_string());
        self.attempts.push(i64::from(marker.attempt.number()));
        self.writers.push(marker.writer.as_str().to_owned());
        self.digests.push(digest);
        Ok(())
    }

    /// A statement that begins with [`insert_markers`].
    pub(super) fn query(
        self,
        statement: &'static str,
    ) -> QueryScalar<'static, Postgres, String, PgArguments> {
        sqlx::query_scalar(statement)
            .bind(self.batches)
            .bind(self.attempts)
            .bind(self.writers)
            .bind(self.digests)
            .bind(self.outcomes)
    }

    /// Inserts them; which batches' were the first.
    pub(super) async fn insert(
        self,
        connection: &mut PgConnection,
    ) -> Result<HashSet<String>, sqlx::Error> {
        const STATEMENT: &str = concat!(
            "WITH marker AS (",
            insert_markers!(),
            ") SELECT batch::text FROM marker"
        );
        let first = self.query(STATEMENT).fetch_all(connection).await?;
        Ok(first.into_iter().collect())
    }
}

#[async_trait]
impl Markers for PostgresSink {
    async fn filed(&self, batch: BatchId) -> Result<Option<Filed>, SinkError> {
        let look = sqlx::query_as(
            "SELECT attempt, writer, outcome, file FROM batch_commits LEFT JOIN batch_files USING (batch) \
             WHERE batch = $1::text::uuid",
        )
        .bind(batch.to_string())
        .fetch_optional(&self.pool);
        let stored: Option<(i64, String, String, Option<String>)> = bounded(look).await?;
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
        let mut columns = Columns::default();
        for filing in filings {
            columns.add(&filing.marker, filing.digest.clone(), &filing.completed)?;
        }
        bounded(async {
            let mut transaction = self.pool.begin().await?;
            let first = columns.insert(&mut transaction).await?;
            let is_beaten = |filing: &&Filing| !first.contains(&filing.marker.batch.to_string());
            let beaten = filings.iter().filter(is_beaten);
            let beaten: Vec<BatchId> = beaten.map(|filing| filing.marker.batch).collect();
            if !beaten.is_empty() {
                transaction.rollback().await?;
                return Ok(beaten);
            }
            if let Some(file) = file {
                sqlx::query(
                    "INSERT INTO batch_files (batch, file) SELECT unnest($1::text[])::uuid, $2",
                )
                .bind(first.into_iter().collect::<Vec<_>>())
                .bind(file)
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await?;
            Ok(beaten)
        })
        .await
    }
}
