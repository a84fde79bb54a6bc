//! Cursors, beside the markers that end them.

use async_trait::async_trait;
use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::Attempt;

use super::{PostgresSink, bounded};
use crate::cursor::{Cursors, KEPT_DAYS, read_cursor};
use crate::sink::SinkError;

#[async_trait]
impl Cursors for PostgresSink {
    async fn cursor(&self, batch: BatchId) -> Result<Option<Box<RawValue>>, SinkError> {
        let look =
            sqlx::query_scalar("SELECT cursor FROM batch_cursors WHERE batch = $1::text::uuid")
                .bind(batch.to_string())
                .fetch_optional(&self.pool);
        let stored: Option<String> = bounded(look).await?;
        Ok(stored.and_then(|text| read_cursor(batch, text)))
    }

    async fn save_cursor(
        &self,
        batch: BatchId,
        attempt: Attempt,
        cursor: Box<RawValue>,
    ) -> Result<(), SinkError> {
        let save = sqlx::query(
            "INSERT INTO batch_cursors (batch, attempt, cursor, saved_at) \
             SELECT $1::text::uuid, $2, $3, now() \
             WHERE NOT EXISTS (SELECT 1 FROM batch_commits WHERE batch = $1::text::uuid) \
             ON CONFLICT (batch) DO UPDATE SET attempt = excluded.attempt, cursor = excluded.cursor, \
             saved_at = excluded.saved_at WHERE excluded.attempt >= batch_cursors.attempt",
        )
        .bind(batch.to_string())
        .bind(i64::from(attempt.number()))
        .bind(cursor.get().to_owned())
        .execute(&self.pool);
        bounded(save).await.map(drop)
    }

    async fn forget_old_cursors(&self) -> Result<(), SinkError> {
        let forget = sqlx::query(
            "DELETE FROM batch_cursors WHERE saved_at < now() - make_interval(days => $1)",
        )
        .bind(i32::try_from(KEPT_DAYS).unwrap_or(i32::MAX))
        .execute(&self.pool);
        bounded(forget).await.map(drop)
    }
}
