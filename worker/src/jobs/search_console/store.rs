//! What the job reads from and notes in the sink, apart from a batch's own results.

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::civil::Date;
use shared::search_console::{DimensionSet, SearchType};

use super::slice_rows::SliceId;
use crate::sink::SinkError;

/// The sink as the Search Console job sees it.
#[async_trait]
pub trait SearchAnalyticsStore: Send + Sync + 'static {
    /// The slices that are known of one property, search type and dimension set.
    async fn slices(
        &self,
        property: &str,
        search_type: SearchType,
        dimensions: &DimensionSet,
    ) -> Result<Vec<StoredSlice>, SinkError>;

    /// Where a property stands; `None` when it was never seen.
    async fn property(&self, property: &str) -> Result<Option<PropertyState>, SinkError>;

    /// Notes where a property stands.
    async fn note_property(&self, property: &str, state: &PropertyState) -> Result<(), SinkError>;

    /// Notes that a slice cannot be fetched. Rows that are stored of it stay.
    async fn note_failed_slice(&self, slice: &SliceId, error: &str) -> Result<(), SinkError>;
}

/// One slice of which the sink knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSlice {
    /// Its day.
    pub date: Date,
    /// `final`, `provisional`, `truncated` or `failed`.
    pub state: String,
    /// Whether it needs no second look, but for late revisions.
    pub is_final: bool,
    /// How many rows it has.
    pub rows: u64,
}

impl TryFrom<(String, String, bool, i64)> for StoredSlice {
    type Error = String;

    /// From the columns `date`, `state`, `is_final`, `rows` of `search_analytics_slices`.
    fn try_from(
        (date, state, is_final, rows): (String, String, bool, i64),
    ) -> Result<Self, String> {
        let date = date
            .parse()
            .map_err(|e| format!("search_analytics_slices.date is {date:?}: {e}"))?;
        let rows = u64::try_from(rows)
            .map_err(|e| format!("search_analytics_slices.rows is {rows}: {e}"))?;
        Ok(Self {
            date,
            state,
            is_final,
            rows,
        })
    }
}

/// Where a property stands, as far as anything but its slices is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyState {
    /// Its data can be read.
    Active,
    /// A quota is used up until then.
    QuotaLimited {
        /// The next Pacific midnight.
        until: Timestamp,
        /// Which quota.
        detail: String,
    },
    /// The credential may not read it (any more).
    PermissionLost {
        /// Google's words.
        detail: String,
    },
    /// The credential itself must be renewed by a person.
    ReauthRequired {
        /// Google's words.
        detail: String,
    },
}

impl PropertyState {
    /// The word that is stored and shown.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::QuotaLimited { .. } => "quota_limited",
            Self::PermissionLost { .. } => "permission_lost",
            Self::ReauthRequired { .. } => "reauth_required",
        }
    }

    /// What a person should know.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Active => None,
            Self::QuotaLimited { detail, .. }
            | Self::PermissionLost { detail }
            | Self::ReauthRequired { detail } => Some(detail),
        }
    }

    /// Until when it stays so, if that is known.
    #[must_use]
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::QuotaLimited { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Reads the stored form; `None` for another word.
    #[must_use]
    pub fn from_stored(
        state: &str,
        detail: Option<String>,
        until: Option<Timestamp>,
    ) -> Option<Self> {
        let detail = detail.unwrap_or_default();
        match state {
            "active" => Some(Self::Active),
            "quota_limited" => Some(Self::QuotaLimited {
                until: until.unwrap_or(Timestamp::UNIX_EPOCH),
                detail,
            }),
            "permission_lost" => Some(Self::PermissionLost { detail }),
            "reauth_required" => Some(Self::ReauthRequired { detail }),
            _ => None,
        }
    }
}
