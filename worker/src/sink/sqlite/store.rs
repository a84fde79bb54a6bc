//! What the Search Console job reads and notes.

use async_trait::async_trait;
use jiff::Timestamp;
use shared::search_console::{DimensionSet, SearchType};

use super::{SqliteSink, sink_error};
use crate::jobs::search_console::slice_rows::SliceId;
use crate::jobs::search_console::store::{PropertyState, SearchAnalyticsStore, StoredSlice};
use crate::sink::SinkError;

#[async_trait]
impl SearchAnalyticsStore for SqliteSink {
    async fn slices(
        &self,
        property: &str,
        search_type: SearchType,
        dimensions: &DimensionSet,
    ) -> Result<Vec<StoredSlice>, SinkError> {
        let rows: Vec<(String, String, bool, i64)> = sqlx::query_as(
            "SELECT date, state, is_final, rows FROM search_analytics_slices \
             WHERE site_url = ? AND search_type = ? AND dimension_set = ? ORDER BY date",
        )
        .bind(property.to_owned())
        .bind(search_type.as_str())
        .bind(dimensions.to_string())
        .fetch_all(&self.pools.others)
        .await
        .map_err(sink_error)?;
        rows.into_iter()
            .map(|row| StoredSlice::try_from(row).map_err(SinkError::Schema))
            .collect()
    }

    async fn property(&self, property: &str) -> Result<Option<PropertyState>, SinkError> {
        let row: Option<(String, Option<String>, Option<String>)> = sqlx::query_as(
            "SELECT state, detail, until FROM search_analytics_properties WHERE site_url = ?",
        )
        .bind(property.to_owned())
        .fetch_optional(&self.pools.others)
        .await
        .map_err(sink_error)?;
        let Some((state, detail, until)) = row else {
            return Ok(None);
        };
        let until: Option<Timestamp> = until.and_then(|until| until.parse().ok());
        let unknown =
            || SinkError::Schema(format!("search_analytics_properties.state is {state:?}"));
        PropertyState::from_stored(&state, detail, until)
            .ok_or_else(unknown)
            .map(Some)
    }

    async fn note_property(&self, property: &str, state: &PropertyState) -> Result<(), SinkError> {
        sqlx::query(
            "INSERT INTO search_analytics_properties (site_url, state, detail, until, checked_at) \
             VALUES (?, ?, ?, ?, ?) ON CONFLICT (site_url) DO UPDATE SET state = excluded.state, \
             detail = excluded.detail, until = excluded.until, checked_at = excluded.checked_at",
        )
        .bind(property.to_owned())
        .bind(state.as_str())
        .bind(state.detail().map(str::to_owned))
        .bind(state.until().map(|until| until.to_string()))
        .bind(Timestamp::now().to_string())
        .execute(&self.pools.others)
        .await
        .map_err(sink_error)?;
        Ok(())
    }

    async fn note_failed_slice(&self, slice: &SliceId, error: &str) -> Result<(), SinkError> {
        sqlx::query(
            "INSERT INTO search_analytics_slices (site_url, search_type, dimension_set, date, state, error) \
             VALUES (?, ?, ?, ?, 'failed', ?) ON CONFLICT (site_url, search_type, dimension_set, date) \
             DO UPDATE SET state = excluded.state, error = excluded.error",
        )
        .bind(slice.property.clone())
        .bind(slice.search_type.as_str())
        .bind(slice.dimensions.to_string())
        .bind(slice.date.to_string())
        .bind(error.to_owned())
        .execute(&self.pools.others)
        .await
        .map_err(sink_error)?;
        Ok(())
    }
}
