//! `[search_console]`: the main job.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::ConfigError;
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
    /// Requests per second and site to start with. Default 5 (what survived in production, PostHog/posthog#61938).
    pub rate_start: f64,
    /// Requests per second and site that the rate climbs to. Default 20: Google's 1,200 a minute.
    pub rate_max: f64,
}

impl SearchConsoleConfig {
    /// Slices of one property out at a time: more would only wait for its rate.
    pub const MAX_IN_FLIGHT: u32 = 3;
    /// Highest rate that makes sense: Google's project limit is 667 a second.
    const MAX_RATE: f64 = 1_000.0;

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let usable = |rate: f64| rate > 0.0 && rate <= Self::MAX_RATE;
        if !usable(self.rate_start) || !usable(self.rate_max) || self.rate_start > self.rate_max {
            let problem = format!(
                "must satisfy 0 < rate_start <= rate_max <= {}: {} and {}",
                Self::MAX_RATE,
                self.rate_start,
                self.rate_max
            );
            return Err(ConfigError::wrong("search_console.rate_max", problem));
        }
        Ok(())
    }
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
            rate_start: 5.0,
            rate_max: 20.0,
        }
    }
}
