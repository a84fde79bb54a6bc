//! `[search_console]`: the main job.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use crate::search_console::{DimensionSet, SearchType};

/// The main job. `TIDEGATE_SEARCH_CONSOLE__…`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchConsoleConfig {
    /// Root of the API. Default Google's.
    pub endpoint: Url,
    /// Path of a service-account or authorized-user JSON file, read by the worker.
    pub credentials: Option<PathBuf>,
    /// RFC 3339 time that replaces the clock when "today" is computed, for tests.
    pub now: Option<Timestamp>,
    /// Search types that are synced when the run names none. Default: all six.
    pub types: Vec<SearchType>,
    /// Dimension sets that are synced when the run names none.
    pub dimensions: Vec<DimensionSet>,
    /// How many of the last final days are fetched again by each sync, because Google revises them.
    /// Default 10.
    pub resync_days: u32,
}

impl SearchConsoleConfig {
    /// Slices of one property out at a time: more would only wait for its rate.
    pub const MAX_IN_FLIGHT: u32 = 3;
}

impl Default for SearchConsoleConfig {
    fn default() -> Self {
        let sets = [
            "date",
            "page",
            "query",
            "page,query,country,device",
            "country",
            "device",
        ];
        Self {
            endpoint: Url::parse("https://searchconsole.googleapis.com/").expect("a constant URL"),
            credentials: None,
            now: None,
            types: SearchType::ALL.to_vec(),
            dimensions: sets
                .map(|set| set.parse().expect("a constant set"))
                .to_vec(),
            resync_days: 10,
        }
    }
}
