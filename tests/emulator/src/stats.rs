//! What happened so far: the counters behind `GET /__emu/stats`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;

/// Counters, all since start or the last reset.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// HTTP requests, without those to `/__emu/`. A batch is one.
    pub requests: u64,
    /// Answers by HTTP status, parts of batches included; `0` is a connection reset without an answer.
    pub by_status: BTreeMap<u16, u64>,
    /// Calls that name a site, parts of batches included.
    pub by_site: BTreeMap<String, u64>,
    /// Calls by endpoint, parts of batches included.
    pub by_endpoint: BTreeMap<&'static str, u64>,
    /// Access tokens issued.
    pub tokens: u64,
    /// Parts of batches.
    pub batch_parts: u64,
    /// Rows in answers.
    pub rows_out: u64,
    /// Bytes of bodies, as sent: compressed if asked for.
    pub bytes_out: u64,
    /// Refused queries by the limit they ran into.
    pub over_quota: BTreeMap<&'static str, u64>,
    /// Faults that happened, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Requests now between their arrival and the end of their answer.
    pub in_flight: u64,
    /// The most that `in_flight` ever was.
    pub max_in_flight: u64,
    /// The same for each site.
    pub max_in_flight_by_site: BTreeMap<String, u64>,
    /// The most calls within one second, for each site.
    pub peak_per_second_by_site: BTreeMap<String, u64>,
    /// How often each page was asked for: `site|type|date|dims|startRow`.
    pub fetches: BTreeMap<String, u64>,
    /// Pages served again although they had been served whole and could not have changed since.
    pub duplicates: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Requests that came over HTTP/2.
    pub h2_streams: u64,
    /// Rows of answers that a fault then destroyed.
    pub wasted_rows: u64,
    /// When the first request came, by the real clock.
    pub first_at: Option<Timestamp>,
    /// When the last request came.
    pub last_at: Option<Timestamp>,

    #[serde(skip)]
    sites_in_flight: HashMap<String, u64>,
    /// For each site the current second, its number and the calls in it.
    #[serde(skip)]
    seconds: HashMap<String, (u64, u64)>,
    #[serde(skip)]
    served_whole: HashSet<u64>,
    #[serde(skip)]
    started: Option<Instant>,
}

impl Stats {
    /// Back to zero, except for what is still under way.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            in_flight: self.in_flight,
            max_in_flight: self.in_flight,
            sites_in_flight: std::mem::take(&mut self.sites_in_flight),
            ..Self::default()
        };
    }

    pub(crate) fn request(&mut self, is_h2: bool) {
        self.requests += 1;
        self.h2_streams += u64::from(is_h2);
        let now = Timestamp::now();
        self.first_at.get_or_insert(now);
        self.last_at = Some(now);
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
    }

    pub(crate) fn request_ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(crate) fn call(&mut self, endpoint: &'static str) {
        *self.by_endpoint.entry(endpoint).or_default() += 1;
    }

    pub(crate) fn site_call(&mut self, site: &str) {
        add(&mut self.by_site, site, 1);
        let second = self
            .started
            .get_or_insert_with(Instant::now)
            .elapsed()
            .as_secs();
        let (current, calls) = slot(&mut self.seconds, site);
        if *current != second {
            (*current, *calls) = (second, 0);
        }
        *calls += 1;
        let calls = *calls;
        raise(&mut self.peak_per_second_by_site, site, calls);
        let under_way = slot(&mut self.sites_in_flight, site);
        *under_way += 1;
        let under_way = *under_way;
        raise(&mut self.max_in_flight_by_site, site, under_way);
    }

    pub(crate) fn site_call_ended(&mut self, site: &str) {
        let under_way = slot(&mut self.sites_in_flight, site);
        *under_way = under_way.saturating_sub(1);
    }

    pub(crate) fn fetch(&mut self, page: &str) {
        add(&mut self.fetches, page, 1);
    }

    /// A page went out. `identity` tells its whole request and the state of the data, when no fault spoils it.
    pub(crate) fn page(&mut self, identity: Option<u64>, rows: usize, is_wasted: bool) {
        let rows = rows as u64;
        self.rows_out += rows;
        if is_wasted {
            self.wasted_rows += rows;
        }
        if identity.is_some_and(|identity| !self.served_whole.insert(identity)) {
            self.duplicates += 1;
        }
    }

    pub(crate) fn status(&mut self, status: u16) {
        *self.by_status.entry(status).or_default() += 1;
    }

    pub(crate) fn over_quota(&mut self, limit: &'static str) {
        *self.over_quota.entry(limit).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, name: String) {
        *self.faults.entry(name).or_default() += 1;
    }
}

fn slot<'a, V: Default>(map: &'a mut HashMap<String, V>, key: &str) -> &'a mut V {
    map.entry(key.to_owned()).or_default()
}

fn add(map: &mut BTreeMap<String, u64>, key: &str, more: u64) {
    match map.get_mut(key) {
        Some(count) => *count += more,
        None => {
            map.insert(key.to_owned(), more);
        }
    }
}

fn raise(map: &mut BTreeMap<String, u64>, key: &str, value: u64) {
    match map.get_mut(key) {
        Some(highest) => *highest = value.max(*highest),
        None => {
            map.insert(key.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_and_unchanged_pages_count_as_duplicates() {
        let mut stats = Stats::default();
        stats.page(None, 10, true);
        stats.page(Some(1), 10, false);
        assert_eq!(
            (stats.duplicates, stats.wasted_rows, stats.rows_out),
            (0, 10, 20)
        );
        stats.page(Some(2), 10, false);
        stats.page(Some(1), 10, false);
        assert_eq!(stats.duplicates, 1);
    }

    #[test]
    fn a_reset_keeps_what_is_under_way() {
        let mut stats = Stats::default();
        stats.request(false);
        stats.site_call("a");
        stats.reset();
        assert_eq!(
            (stats.requests, stats.in_flight, stats.max_in_flight),
            (0, 1, 1)
        );
        stats.site_call("a");
        assert_eq!(stats.max_in_flight_by_site["a"], 2);
    }
}
