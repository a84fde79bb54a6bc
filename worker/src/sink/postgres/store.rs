//! What the Search Console job reads and notes.

use async_trait::async_trait;
use jiff::Timestamp;
use shared::search_console::{DimensionSet, SearchType};

use super::{PostgresSink, bounded};
use crate::jobs::search_console::slice_rows::SliceId;
use crate::jobs::search_console::store::{PropertyState, SearchAnalyticsStore, StoredSlice};
use crate::sink::SinkError;

#[async_trait]
impl SearchAnalyticsStore for PostgresSink {
    async fn slices(
        &self,
        property: &str,
        search_type: SearchType,
        dimensions: &DimensionSet,
    ) -> Result<Vec<StoredSlice>, SinkError> {
        let look = sqlx::query_as(
            "SELECT date::text, state, is_final, rows FROM search_analytics_slices \
             WHERE site_url = $1 AND search_type = $2 AND dimension_set = $3 ORDER BY date",
        )
        .bind(property)
        .bind(search_type.as_str())
        .bind(dimensions.to_string())
        .fetch_all(&self.pool);
        let rows: Vec<(String, String, bool, i64)> = bounded(look).await?;
        rows.into_iter()
            .map(|row| StoredSlice::try_from(row).map_err(SinkError::Schema))
            .collect()
    }

    async fn property(&self, property: &str) -> Result<Option<PropertyState>, SinkError> {
        let look = sqlx::query_as(
            "SELECT state, detail, extract(epoch FROM until)::bigint FROM search_analytics_properties \
             WHERE site_url = $1",
        )
        .bind(property)
        .fetch_optional(&self.pool);
        let row: Option<(String, Option<String>, Option<i64>)> = bounded(look).await?;
        let Some((state, detail, until)) = row else {
            return Ok(None);
        };
        let until: Option<Timestamp> =
            until.and_then(|seconds| Timestamp::from_second(seconds).ok());
        let unknown =
            || SinkError::Schema(format!("search_analytics_properties.state is {state:?}"));
        PropertyState::from_stored(&state, detail, until)
            .ok_or_else(unknown)
            .map(Some)
    }

    async fn note_property(&self, property: &str, state: &PropertyState) -> Result<(), SinkError> {
        let note = sqlx::query(
            "INSERT INTO search_analytics_properties (site_url, state, detail, until, checked_at) \
             VALUES ($1, $2, $3, $4::text::timestamptz, now()) ON CONFLICT (site_url) DO UPDATE SET state = excluded.state, \
             detail = excluded.detail, until = excluded.until, checked_at = excluded.checked_at",
        )
        .bind(property)
        .bind(state.as_str())
        .bind(state.detail())
        .bind(state.until().map(|until| until.to_string()))
        .execute(&self.pool);
        bounded(note).await.map(drop)
    }

    async fn note_failed_slice(&self, slice: &SliceId, error: &str) -> Result<(), SinkError> {
        let note = sqlx::query(
            "INSERT INTO search_analytics_slices (site_url, search_type, dimension_set, date, state, error) \
             VALUES ($1, $2, $3, $4::text::date, 'failed', $5) ON CONFLICT (site_url, search_type, dimension_set, date) \
             DO UPDATE SET state = excluded.state, error = excluded.error",
        )
        .bind(&slice.property)
        .bind(slice.search_type.as_str())
        .bind(slice.dimensions.to_string())
        .bind(slice.date.to_string())
        .bind(error)
        .execute(&self.pool);
        bounded(note).await.map(drop)
    }
}
