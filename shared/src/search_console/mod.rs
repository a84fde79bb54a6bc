//! The words of the Search Console job that its submitters (CLI, schedules) and its handlers (the worker)
//! must spell alike. Facts: Google's Search Analytics API reference, `searchanalytics.query`.

mod property;
mod sync;

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

pub use property::{PropertyError, normalize_property};
pub use sync::{MAX_DAYS, Sync, SyncError};

/// The pipeline of the first stage: one batch a property, which finds out what days exist.
pub const PLAN_PIPELINE: &str = "gsc.plan";
/// The pipeline of the second stage: one batch a slice.
pub const SLICE_PIPELINE: &str = "gsc.slice";

/// The limit of one property's calls.
pub const SITE_LIMIT: &str = "gsc.site";
/// The limit of one credential's calls, over all properties.
pub const USER_LIMIT: &str = "gsc.user";
/// The limit of all calls.
pub const PROJECT_LIMIT: &str = "gsc.project";
/// The load quota of one property. It has no rate; calls that ask for pages or queries fall under it.
pub const LOAD_LIMIT: &str = "gsc.load";
/// The limits under which every batch falls, with the property as key.
pub const PIPELINE_LIMITS: [&str; 2] = [SITE_LIMIT, PROJECT_LIMIT];

/// What Google calls `type`: where on the results page a link was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SearchType {
    /// Ordinary results.
    #[serde(rename = "web")]
    Web,
    /// The image tab.
    #[serde(rename = "image")]
    Image,
    /// The video tab.
    #[serde(rename = "video")]
    Video,
    /// The news tab.
    #[serde(rename = "news")]
    News,
    /// Discover.
    #[serde(rename = "discover")]
    Discover,
    /// Google News.
    #[serde(rename = "googleNews")]
    GoogleNews,
}

impl SearchType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Web,
        Self::Image,
        Self::Video,
        Self::News,
        Self::Discover,
        Self::GoogleNews,
    ];

    /// Google's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Image => "image",
            Self::Video => "video",
            Self::News => "news",
            Self::Discover => "discover",
            Self::GoogleNews => "googleNews",
        }
    }
}

/// One column that rows are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dimension {
    /// The Pacific day.
    Date,
    /// The page that was shown.
    Page,
    /// The query that was typed.
    Query,
    /// ISO 3166-1 alpha-3, lower case; `zzz` is unknown.
    Country,
    /// `DESKTOP`, `MOBILE` or `TABLET`.
    Device,
}

impl Dimension {
    const ALL: [Self; 5] = [
        Self::Date,
        Self::Page,
        Self::Query,
        Self::Country,
        Self::Device,
    ];

    /// Google's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Date => "date",
            Self::Page => "page",
            Self::Query => "query",
            Self::Country => "country",
            Self::Device => "device",
        }
    }
}

/// What a slice's rows are grouped by, in order: `page,query,country,device`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DimensionSet(Vec<Dimension>);

impl DimensionSet {
    /// The dimensions in request order.
    #[must_use]
    pub fn dimensions(&self) -> &[Dimension] {
        &self.0
    }

    /// Whether this set groups by `dimension`.
    #[must_use]
    pub fn contains(&self, dimension: Dimension) -> bool {
        self.0.contains(&dimension)
    }

    /// Whether Google answers this set for this search type; otherwise it says 400.
    ///
    /// Discover knows neither query nor device, Google News no query
    /// (observed: singer-io/tap-google-search-console#39, joshcarty/google-searchconsole#60).
    #[must_use]
    pub fn is_legal_for(&self, search_type: SearchType) -> bool {
        let query = self.contains(Dimension::Query);
        let device = self.contains(Dimension::Device);
        match search_type {
            SearchType::Discover => !query && !device,
            SearchType::GoogleNews => !query,
            _ => true,
        }
    }

    /// The name of the table or view in the sink: `search_analytics_page_query_country_device`.
    #[must_use]
    pub fn table(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|d| d.as_str()).collect();
        format!("search_analytics_{}", names.join("_"))
    }
}

/// Why a text names no search type or dimension set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpellingError {
    /// No such search type.
    #[error("{0:?} is no search type: use web, image, video, news, discover or googleNews")]
    SearchType(String),
    /// No such dimension.
    #[error("{0:?} is no dimension: use date, page, query, country or device, joined by commas")]
    Dimension(String),
    /// The same one twice.
    #[error("dimension {0:?} is named twice")]
    Twice(String),
    /// A day is always the slice's own: with others, it would repeat itself in every row.
    #[error("'date' stands alone: every table has the date as a column anyway")]
    DateWithOthers,
}

impl FromStr for SearchType {
    type Err = SpellingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL
            .into_iter()
            .find(|t| t.as_str().eq_ignore_ascii_case(text.trim()));
        found.ok_or_else(|| SpellingError::SearchType(text.to_owned()))
    }
}

impl FromStr for DimensionSet {
    type Err = SpellingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut set = Vec::new();
        for name in text.split(',').map(str::trim) {
            let dimension = Dimension::ALL
                .into_iter()
                .find(|d| d.as_str().eq_ignore_ascii_case(name))
                .ok_or_else(|| SpellingError::Dimension(name.to_owned()))?;
            if set.contains(&dimension) {
                return Err(SpellingError::Twice(name.to_owned()));
            }
            set.push(dimension);
        }
        if set.len() > 1 && set.contains(&Dimension::Date) {
            return Err(SpellingError::DateWithOthers);
        }
        Ok(Self(set))
    }
}

impl TryFrom<String> for DimensionSet {
    type Error = SpellingError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DimensionSet> for String {
    fn from(set: DimensionSet) -> Self {
        set.to_string()
    }
}

impl fmt::Display for DimensionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|d| d.as_str()).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Display for SearchType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which days a sync covers, all in Pacific time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Days {
    /// The last so many days that are final.
    Last(u32),
    /// From one day to another, both included.
    Between {
        /// First day.
        from: Date,
        /// Last day.
        to: Date,
    },
}

/// The payload of a `gsc.plan` batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanPayload {
    /// The property: `https://example.com/` or `sc-domain:example.com`. Other spellings that
    /// [`normalize_property`] understands are accepted.
    pub property: String,
    /// Which days.
    pub days: Days,
    /// Which search types; empty = those of the worker's config.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<SearchType>,
    /// Which dimension sets; empty = those of the worker's config.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dimensions: Vec<DimensionSet>,
    /// Fetch days again that are stored as final and lie before the re-sync window.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refetch: bool,
}

/// The payload of a `gsc.slice` batch: one site, one type, one dimension set, one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePayload {
    /// The property.
    pub property: String,
    /// The search type.
    #[serde(rename = "type")]
    pub search_type: SearchType,
    /// What rows are grouped by.
    pub dimensions: DimensionSet,
    /// The Pacific day.
    pub date: Date,
    /// Clicks of that day by the plan's own `[date]` request: what a set without `query` must add up to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_clicks: Option<u64>,
    /// Impressions by the same request: what a set without `page` and `query` must add up to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_impressions: Option<u64>,
    /// The first day that Google calls incomplete, when it named one: days from there on are not final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_incomplete: Option<Date>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimension_sets_are_read_and_named() {
        let set: DimensionSet = "page, query,country,device".parse().unwrap();
        assert_eq!(set.to_string(), "page,query,country,device");
        assert_eq!(set.table(), "search_analytics_page_query_country_device");
        assert!("page,page".parse::<DimensionSet>().is_err());
        assert!("date,page".parse::<DimensionSet>().is_err());
        assert!("".parse::<DimensionSet>().is_err());
    }

    #[test]
    fn illegal_combinations_are_known() {
        let legal = |set: &str, t| set.parse::<DimensionSet>().unwrap().is_legal_for(t);
        assert!(legal("page,country", SearchType::Discover));
        assert!(!legal("device", SearchType::Discover));
        assert!(legal("device", SearchType::GoogleNews));
        assert!(!legal("query", SearchType::GoogleNews));
        assert!(legal("query", SearchType::Web));
    }
}
