//! Generator v1: what there is to be found in the emulated Search Console.
//!
//! Rows are a pure function of the [`Options`], the [`Selection`] and the time. Nothing is stored, so a test
//! can ask for the truth at any moment, before or after a revision. In flow order: `facts` makes the
//! searches of a day, `layout` packs their keys, `aggregate` adds them up and sorts them, and a [`RowSet`]
//! gives texts and ratios back.

mod aggregate;
mod facts;
mod filter;
mod layout;
mod nasty;
mod primitives;
mod profile;
mod selection;
mod texts;
mod vocabulary;

pub use aggregate::rows;
pub(crate) use aggregate::{days_before, days_between};
pub(crate) use facts::REVISION_DELAY_DAYS;
pub use filter::{Condition, Filter};
pub(crate) use layout::MAX_DAYS;
pub use primitives::{fnv, mix};
pub use profile::Profile;
pub use selection::{EmptyRange, Options, Selection};
pub(crate) use texts::base_address;
pub use vocabulary::{Aggregation, DataState, Dimension, SearchType};

use layout::Layout;
use serde::Serialize;

/// The sums of one key tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// The key tuple, packed by [`Layout`].
    pub(crate) key: u64,
    pub(crate) clicks: u64,
    pub(crate) impressions: u64,
    /// Ten times the position, times impressions.
    pub(crate) weight: u64,
}

/// All rows of a selection in answer order, not yet cut into pages.
#[derive(Debug)]
pub struct RowSet {
    rows: Vec<Row>,
    layout: Layout,
    aggregation: Aggregation,
    has_position: bool,
}

/// One row with its texts, as an answer has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TruthRow {
    /// Texts in the order of the dimensions; absent without dimensions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Clicks.
    pub clicks: u64,
    /// Times shown.
    pub impressions: u64,
    /// Clicks by impressions.
    pub ctr: f64,
    /// Mean position; absent for Discover and Google News.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<f64>,
}

impl Row {
    #[expect(clippy::cast_precision_loss, reason = "sums stay far below 2^53")]
    pub(crate) fn ctr(&self) -> f64 {
        self.clicks as f64 / self.impressions as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "sums stay far below 2^53")]
    pub(crate) fn position(&self) -> f64 {
        self.weight as f64 / (10 * self.impressions) as f64
    }
}

impl RowSet {
    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How the rows were counted.
    #[must_use]
    pub fn aggregation(&self) -> Aggregation {
        self.aggregation
    }

    /// Every row with its texts, in answer order.
    pub fn iter(&self) -> impl Iterator<Item = TruthRow> {
        self.rows.iter().map(|row| self.truth_row(row))
    }

    fn truth_row(&self, row: &Row) -> TruthRow {
        TruthRow {
            keys: self.layout.keys(row.key).map(Into::into).collect(),
            clicks: row.clicks,
            impressions: row.impressions,
            ctr: row.ctr(),
            position: self.has_position.then(|| row.position()),
        }
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn has_position(&self) -> bool {
        self.has_position
    }

    /// Memory held, for the cache's bound.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.rows.capacity() * size_of::<Row>()
    }
}

#[cfg(test)]
mod tests;
