//! A sync: which properties, which days, and of what. Asked for by a person (`tidegate sync
//! search-console`) or by a schedule, it becomes the same `gsc.plan` batches.

use super::{Days, DimensionSet, PlanPayload, SearchType};
use crate::name::{Key, NameError};

/// Most days of a sync, about ten years: Google keeps 16 months.
pub const MAX_DAYS: u32 = 3_660;

/// What is to be synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    /// Normalised properties. One that is named twice is synced once.
    pub properties: Vec<String>,
    /// Which days.
    pub days: Days,
    /// Which search types; empty = those of the worker's config.
    pub types: Vec<SearchType>,
    /// Which dimension sets; empty = those of the worker's config.
    pub dimensions: Vec<DimensionSet>,
    /// Whether days that are stored as final are fetched again too.
    pub refetch: bool,
}

/// Why there is nothing to sync.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// No combination that Google answers.
    #[error(
        "nothing to fetch: Google answers none of these dimensions for any of these types \
         (discover knows no query and no device, googleNews no query)"
    )]
    Nothing,
    /// A property that cannot be a key.
    #[error("property {property}: {problem}")]
    Property {
        /// Which one.
        property: String,
        /// What is wrong with it.
        problem: NameError,
    },
}

impl Sync {
    /// The submission: NDJSON, a line a property, whose name is the key.
    ///
    /// # Panics
    /// Never: a plan is always JSON.
    pub fn lines(&self) -> Result<String, SyncError> {
        #[derive(serde::Serialize)]
        struct Line {
            key: Key,
            payload: PlanPayload,
        }
        let mut lines = String::new();
        for payload in self.plans()? {
            let key = Key::new(&payload.property).map_err(|problem| SyncError::Property {
                property: payload.property.clone(),
                problem,
            })?;
            let line = serde_json::to_string(&Line { key, payload }).expect("a plan serialises");
            lines.push_str(&line);
            lines.push('\n');
        }
        Ok(lines)
    }

    fn plans(&self) -> Result<Vec<PlanPayload>, SyncError> {
        let types = once(&self.types);
        let dimensions = once(&self.dimensions);
        let legal = |search_type: &SearchType| {
            let mut sets = dimensions.iter();
            sets.any(|set| set.is_legal_for(*search_type))
        };
        if !types.is_empty() && !dimensions.is_empty() && !types.iter().any(legal) {
            return Err(SyncError::Nothing);
        }
        let plan = |property| PlanPayload {
            property,
            days: self.days,
            types: types.clone(),
            dimensions: dimensions.clone(),
            refetch: self.refetch,
        };
        Ok(once(&self.properties).into_iter().map(plan).collect())
    }
}

/// The values without repetitions, in their order.
fn once<T: Clone + PartialEq>(values: &[T]) -> Vec<T> {
    let mut kept = Vec::new();
    for value in values {
        if !kept.contains(value) {
            kept.push(value.clone());
        }
    }
    kept
}
