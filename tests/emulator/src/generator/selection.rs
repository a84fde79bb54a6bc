//! What is asked of the generator: one checked request, without its paging.

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::{Aggregation, DataState, Dimension, Filter, Profile, SearchType};

/// The settings that decide the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Another seed, other content.
    pub seed: u64,
    /// How much there is.
    pub profile: Profile,
    /// Age in days from which a day is final.
    pub final_lag: i32,
    /// How many days back rows are kept.
    pub retention_days: i32,
    /// The most rows a day can have; the API's silent cap.
    pub row_cap: usize,
    /// Days without any data.
    pub empty: Vec<EmptyRange>,
    /// Whether texts are chosen to break careless clients.
    pub nasty_text: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 42,
            profile: Profile::Small,
            final_lag: 3,
            retention_days: 486,
            row_cap: 50_000,
            empty: Vec::new(),
            nasty_text: false,
        }
    }
}

/// Days on which a site, or every site, has no data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmptyRange {
    /// The site; every site when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// First day without data.
    pub from: Date,
    /// Last day without data.
    pub to: Date,
}

impl EmptyRange {
    pub(crate) fn covers(&self, site: &str, date: Date) -> bool {
        self.site.as_deref().is_none_or(|wanted| wanted == site)
            && self.from <= date
            && date <= self.to
    }
}

/// Which rows: everything of a request but its paging and format.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The property, as decoded from the path.
    pub site: String,
    /// The kind of search.
    pub search_type: SearchType,
    /// First day asked for.
    pub start: Date,
    /// Last day asked for.
    pub end: Date,
    /// Grouping, in the order of the keys.
    pub dimensions: Vec<Dimension>,
    /// Conditions that all have to hold.
    pub filters: Vec<Filter>,
    /// `None` is the API's `auto`.
    pub aggregation: Option<Aggregation>,
    /// How fresh.
    pub data_state: DataState,
}

impl Selection {
    /// One day, unfiltered: the slice that Tidegate works in.
    #[must_use]
    pub fn day(site: &str, search_type: SearchType, date: Date, dimensions: &[Dimension]) -> Self {
        Self {
            site: site.to_owned(),
            search_type,
            start: date,
            end: date,
            dimensions: dimensions.to_vec(),
            filters: Vec::new(),
            aggregation: None,
            data_state: DataState::Final,
        }
    }

    /// How the rows are counted; the API says so in its answer.
    #[must_use]
    pub fn counted(&self) -> Aggregation {
        match self.aggregation {
            Some(chosen) => chosen,
            None if self.touches(Dimension::Page) => Aggregation::ByPage,
            None => Aggregation::ByProperty,
        }
    }

    /// Whether the rows are grouped or filtered by this dimension.
    #[must_use]
    pub fn touches(&self, dimension: Dimension) -> bool {
        self.dimensions.contains(&dimension)
            || self
                .filters
                .iter()
                .any(|filter| filter.dimension == dimension)
    }
}
