//! Cursors, beside the markers that end them.

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::Attempt;

use super::{SqliteSink, sink_error};
use crate::cursor::{Cursors, KEPT_DAYS, read_cursor};
use crate::sink::SinkError;

#[async_trait]
impl Cursors for SqliteSink {
    async fn cursor(&self, batch: BatchId) -> Result<Option<Box<RawValue>>, SinkError> {
        let stored: Option<String> =
            sqlx::query_scalar("SELECT cursor FROM batch_cursors WHERE batch = ?")
                .bind(batch.to_string())
                .fetch_optional(&self.pools.others)
                .await
                .map_err(sink_error)?;
        Ok(stored.and_then(|text| read_cursor(batch, text)))
    }

    async fn save_cursor(
        &self,
        batch: BatchId,
        attempt: Attempt,
        cursor: Box<RawValue>,
    ) -> Result<(), SinkError> {
        sqlx::query(
            "INSERT INTO batch_cursors (batch, attempt, cursor, saved_at) SELECT ?1, ?2, ?3, ?4 \
             WHERE NOT EXISTS (SELECT 1 FROM batch_commits WHERE batch = ?1) \
             ON CONFLICT (batch) DO UPDATE SET attempt = excluded.attempt, cursor = excluded.cursor, \
             saved_at = excluded.saved_at WHERE excluded.attempt >= batch_cursors.attempt",
        )
        .bind(batch.to_string())
        .bind(i64::from(attempt.number()))
        .bind(cursor.get().to_owned())
        .bind(Timestamp::now().to_string())
        .execute(&self.pools.others)
        .await
        .map(drop)
        .map_err(sink_error)
    }

    async fn forget_old_cursors(&self) -> Result<(), SinkError> {
        let oldest = Timestamp::now() - SignedDuration::from_hours(24 * KEPT_DAYS);
        sqlx::query("DELETE FROM batch_cursors WHERE saved_at < ?")
            .bind(oldest.to_string())
            .execute(&self.pools.others)
            .await
            .map(drop)
            .map_err(sink_error)
    }
}
