//! First stage, one batch a property: may it be read, which days exist, and which slices are missing or
//! due for another look. Emits one `gsc.slice` batch for each of those, newest day first.
//!
//! Which days get slices:
//! - a day that the probe lists, unless its slice is stored as final and lies before the re-sync window;
//! - a day that the probe does not list, only if rows of it are stored: they may have vanished.
//!
//! A day without data and without stored rows gets none: it is probed again by every sync, so nothing is
//! lost, and five hundred empty slices a search type are saved.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::value::RawValue;
use shared::name::{Key, PipelineName};
use shared::outcome::{FollowUp, MAX_FOLLOW_UP_BYTES};
use shared::search_console::{
    Days, Dimension, DimensionSet, PLAN_PIPELINE, PlanPayload, SLICE_PIPELINE, SearchType,
    SlicePayload, normalize_property,
};

use super::Shared;
use super::api::{Api, Calls};
use super::calendar::{FINAL_AFTER_DAYS, HISTORY_DAYS, days_before, last_final_day};
use super::client::{DataState, Query, ROW_LIMIT, Site};
use super::page;
use super::rate::Weight;
use super::slice_rows::SliceRows;
use super::store::{PropertyState, StoredSlice};
use crate::handler::{BatchContext, Handler, HandlerError, Output, Rows};

/// Days that the question for the first incomplete day covers.
const FRONTIER_DAYS: i64 = 10;
/// Search types that are probed at a time.
const PROBES_AT_ONCE: usize = 3;
/// Room that a follow-up's pipeline, key and punctuation take beside its payload.
const FOLLOW_UP_OVERHEAD: usize = 64;

/// The handler of `gsc.plan`.
pub struct PlanHandler {
    pub(super) shared: Arc<Shared>,
}

/// What the probes of one search type found.
struct Probe {
    search_type: SearchType,
    /// Clicks and impressions of each day that exists.
    days: BTreeMap<Date, Totals>,
    first_incomplete: Option<Date>,
    calls: u64,
    repeated: u64,
}

#[derive(Clone, Copy)]
struct Totals {
    clicks: u64,
    impressions: u64,
}

/// The days that a sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    from: Date,
    to: Date,
}

#[async_trait]
impl Handler for PlanHandler {
    type Input = PlanPayload;

    async fn handle(&self, input: PlanPayload, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let api = self.shared.api()?;
        let property = match normalize_property(&input.property) {
            Ok(property) => property,
            Err(error) => {
                return Err(self
                    .name_candidates(api, ctx, &input.property, error.to_string())
                    .await);
            }
        };
        let mut calls = Calls::new(api, ctx, &property);
        check_access(&mut calls).await?;

        let today = self.shared.calendar.today();
        let types = if input.types.is_empty() {
            &self.shared.config.types
        } else {
            &input.types
        };
        let probes = match range(input.days, today) {
            Some(range) => probe_all(&calls, types, range, today).await?,
            None => Vec::new(),
        };
        let plan = Plan {
            shared: &self.shared,
            input: &input,
            property: &property,
            today,
        };
        let (payloads, already_final) = plan.slices(&calls, &probes).await?;

        let mut statistics = calls.statistics();
        *statistics.entry("api_calls".into()).or_default() +=
            probes.iter().map(|p| p.calls).sum::<u64>();
        let repeated: u64 = probes.iter().map(|p| p.repeated).sum();
        if repeated > 0 {
            *statistics.entry("api_retries".into()).or_default() += repeated;
        }
        statistics.insert("slices_already_final".into(), already_final);
        let follow_ups = plan.follow_ups(&payloads)?;
        statistics.insert("follow_ups".into(), follow_ups.len() as u64);
        Ok(Output {
            rows: Rows::None,
            follow_ups,
            statistics,
        })
    }
}

impl PlanHandler {
    /// A property that is none: says which ones this credential knows and may have been meant.
    async fn name_candidates(
        &self,
        api: &Api,
        ctx: &BatchContext,
        written: &str,
        problem: String,
    ) -> HandlerError {
        let mut calls = Calls::new(api, ctx, written);
        let known = match calls.sites().await {
            Ok(sites) => did_you_mean(written, &sites),
            // The property is wrong whatever the list says.
            Err(_) => String::new(),
        };
        HandlerError::fail("unknown_property", format!("{problem}{known}"))
    }
}

/// Looks the property up among those that this credential can see.
async fn check_access(calls: &mut Calls<'_>) -> Result<(), HandlerError> {
    let sites = calls.sites().await?;
    let property = calls.property;
    match sites.iter().find(|site| site.site_url == property) {
        Some(site) if site.is_readable() => note_active(calls).await,
        Some(_) => {
            let words = format!(
                "{property} is not verified for this credential: verify it, or add the credential as a user"
            );
            Err(calls.permission_lost(words).await)
        }
        None => {
            let words = format!(
                "{property} is not among the properties of this credential{}",
                did_you_mean(property, &sites)
            );
            match calls.api.store.property(property).await {
                // It was readable once.
                Ok(Some(_)) => Err(calls.permission_lost(words).await),
                Ok(None) => Err(HandlerError::fail("unknown_property", words)),
                Err(error) => Err(HandlerError::retry(error.to_string())),
            }
        }
    }
}

/// The property can be read; a quota that is known to end later still holds.
async fn note_active(calls: &Calls<'_>) -> Result<(), HandlerError> {
    let before = calls.api.store.property(calls.property).await;
    match before.map_err(|error| HandlerError::retry(error.to_string()))? {
        Some(PropertyState::Active) => {}
        Some(PropertyState::QuotaLimited { until, .. }) if until > Timestamp::now() => {}
        _ => calls.note(&PropertyState::Active).await,
    }
    Ok(())
}

/// The days to look at, inside what Google keeps; `None` when none is left.
fn range(days: Days, today: Date) -> Option<Range> {
    let newest = days_before(today, FINAL_AFTER_DAYS);
    let oldest = days_before(today, HISTORY_DAYS);
    let (from, to) = match days {
        Days::Last(0) => return None,
        Days::Last(count) => (days_before(newest, i64::from(count) - 1), newest),
        Days::Between { from, to } => (from, to.min(newest)),
    };
    let from = from.max(oldest);
    (from <= to).then_some(Range { from, to })
}

async fn probe_all(
    calls: &Calls<'_>,
    types: &[SearchType],
    range: Range,
    today: Date,
) -> Result<Vec<Probe>, HandlerError> {
    let probe = |search_type| probe(calls, search_type, range, today);
    stream::iter(types.to_vec())
        .map(probe)
        .buffered(PROBES_AT_ONCE)
        .try_collect()
        .await
}

/// Asks which days exist, and which is the first that Google calls incomplete.
async fn probe(
    calls: &Calls<'_>,
    search_type: SearchType,
    range: Range,
    today: Date,
) -> Result<Probe, HandlerError> {
    let mut calls = Calls::new(calls.api, calls.ctx, calls.property);
    let query = |from, to, data_state| Query {
        start_date: from,
        end_date: to,
        dimensions: vec![Dimension::Date],
        search_type,
        data_state,
        row_limit: ROW_LIMIT,
        start_row: 0,
    };
    let days = days_of(&mut calls, &query(range.from, range.to, DataState::Final)).await?;
    let mut first_incomplete = None;
    if !days.is_empty() {
        let frontier = query(days_before(today, FRONTIER_DAYS), today, DataState::All);
        let mut rows = SliceRows::new(1);
        let answer = calls.query(&frontier, Weight::Light, |body| {
            rows.truncate(0);
            page::read(body, &mut rows)
        });
        first_incomplete = answer.await?.first_incomplete;
    }
    Ok(Probe {
        search_type,
        days,
        first_incomplete,
        calls: calls.made,
        repeated: calls.repeated,
    })
}

/// The days of a range, each with its totals. One page holds 68 years of them.
async fn days_of(
    calls: &mut Calls<'_>,
    query: &Query,
) -> Result<BTreeMap<Date, Totals>, HandlerError> {
    calls
        .query(query, Weight::Light, |body| {
            let mut rows = SliceRows::new(1);
            page::read(body, &mut rows)?;
            let day = |row: super::slice_rows::Row<'_>| {
                let date: Date = row
                    .keys()
                    .next()
                    .unwrap_or_default()
                    .parse()
                    .map_err(serde::de::Error::custom)?;
                Ok((
                    date,
                    Totals {
                        clicks: row.numbers.clicks,
                        impressions: row.numbers.impressions,
                    },
                ))
            };
            rows.iter().map(day).collect()
        })
        .await
}

/// One property's plan in the making.
struct Plan<'a> {
    shared: &'a Shared,
    input: &'a PlanPayload,
    property: &'a str,
    today: Date,
}

impl Plan<'_> {
    /// The slices to fetch, newest day first, and how many were left out as final.
    async fn slices(
        &self,
        calls: &Calls<'_>,
        probes: &[Probe],
    ) -> Result<(Vec<SlicePayload>, u64), HandlerError> {
        let configured = &self.shared.config.dimensions;
        let sets = if self.input.dimensions.is_empty() {
            configured
        } else {
            &self.input.dimensions
        };
        let mut payloads = Vec::new();
        let mut already_final = 0;
        for probe in probes {
            for set in sets
                .iter()
                .filter(|set| set.is_legal_for(probe.search_type))
            {
                let stored = self.stored(calls, probe.search_type, set).await?;
                for date in self.candidates(probe, &stored) {
                    if self.is_done(date, probe, stored.get(&date)) {
                        already_final += 1;
                    } else {
                        payloads.push(self.payload(date, set, probe));
                    }
                }
            }
        }
        // Stable: types and sets keep their order inside a day.
        payloads.sort_by_key(|payload| Reverse(payload.date));
        Ok((payloads, already_final))
    }

    async fn stored(
        &self,
        calls: &Calls<'_>,
        search_type: SearchType,
        set: &DimensionSet,
    ) -> Result<HashMap<Date, StoredSlice>, HandlerError> {
        let slices = calls
            .api
            .store
            .slices(self.property, search_type, set)
            .await;
        let slices = slices.map_err(|error| HandlerError::retry(error.to_string()))?;
        Ok(slices
            .into_iter()
            .map(|slice| (slice.date, slice))
            .collect())
    }

    /// Days that exist, and days of the range that vanished although rows of them are stored.
    fn candidates(&self, probe: &Probe, stored: &HashMap<Date, StoredSlice>) -> Vec<Date> {
        let mut dates: Vec<Date> = probe.days.keys().copied().collect();
        if let Some(range) = range(self.input.days, self.today) {
            let vanished = |slice: &&StoredSlice| {
                slice.rows > 0
                    && (range.from..=range.to).contains(&slice.date)
                    && !probe.days.contains_key(&slice.date)
            };
            dates.extend(stored.values().filter(vanished).map(|slice| slice.date));
        }
        dates
    }

    fn is_done(&self, date: Date, probe: &Probe, stored: Option<&StoredSlice>) -> bool {
        let Some(stored) = stored else { return false };
        let newest_final = last_final_day(self.today, probe.first_incomplete);
        let resync_from = days_before(newest_final, i64::from(self.shared.config.resync_days) - 1);
        let vanished = !probe.days.contains_key(&date);
        !self.input.refetch
            && !vanished
            && date < resync_from
            && stored.is_final
            && stored.state != "failed"
    }

    fn payload(&self, date: Date, set: &DimensionSet, probe: &Probe) -> SlicePayload {
        let totals = probe.days.get(&date);
        SlicePayload {
            property: self.property.to_owned(),
            search_type: probe.search_type,
            dimensions: set.clone(),
            date,
            control_clicks: totals.map(|totals| totals.clicks),
            control_impressions: totals.map(|totals| totals.impressions),
            first_incomplete: probe.first_incomplete,
        }
    }

    /// The batches to ask for. If they would not fit into one outcome, two plans of half the days each
    /// are asked for instead.
    fn follow_ups(&self, payloads: &[SlicePayload]) -> Result<Vec<FollowUp>, HandlerError> {
        let key = Key::new(self.property)
            .map_err(|e| HandlerError::fail("unknown_property", e.to_string()))?;
        let mut bytes = 0;
        let mut follow_ups = Vec::with_capacity(payloads.len());
        for payload in payloads {
            let follow_up = follow_up(SLICE_PIPELINE, &key, payload);
            bytes += follow_up.payload.get().len() + key.as_str().len() + FOLLOW_UP_OVERHEAD;
            follow_ups.push(follow_up);
        }
        match range(self.input.days, self.today) {
            Some(range) if bytes > MAX_FOLLOW_UP_BYTES && range.from < range.to => {
                let halves = halves(range)
                    .into_iter()
                    .map(|Range { from, to }| PlanPayload {
                        days: Days::Between { from, to },
                        ..self.input.clone()
                    });
                Ok(halves
                    .map(|half| follow_up(PLAN_PIPELINE, &key, &half))
                    .collect())
            }
            _ => Ok(follow_ups),
        }
    }
}

/// The newer half first.
fn halves(Range { from, to }: Range) -> [Range; 2] {
    let days = from.duration_until(to).as_hours() / 24;
    let middle = days_before(to, days / 2);
    [
        Range { from: middle, to },
        Range {
            from,
            to: days_before(middle, 1),
        },
    ]
}

fn follow_up(pipeline: &str, key: &Key, payload: &impl serde::Serialize) -> FollowUp {
    let json = serde_json::to_string(payload).expect("payloads are plain texts, dates and numbers");
    FollowUp {
        pipeline: PipelineName::new(pipeline).expect("the built-in names are well-formed"),
        key: key.clone(),
        payload: RawValue::from_string(json).expect("what was just written is JSON"),
    }
}

/// `; did you mean …?` with the properties that look most like what was written.
fn did_you_mean(written: &str, sites: &[Site]) -> String {
    const SHOWN: usize = 5;
    const ALIKE: f64 = 0.75;
    let host = bare_host(written);
    let mut alike: Vec<(f64, &str)> = sites
        .iter()
        .map(|site| {
            (
                strsim::jaro_winkler(&host, &bare_host(&site.site_url)),
                site.site_url.as_str(),
            )
        })
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let names: Vec<&str> = alike
        .into_iter()
        .take(SHOWN)
        .map(|(_, name)| name)
        .collect();
    if names.is_empty() {
        format!(
            "; it can see {} properties, none of a similar name",
            sites.len()
        )
    } else {
        format!("; did you mean {}?", names.join(" or "))
    }
}

/// What is left of a property when scheme, `sc-domain:`, `www.` and slashes are gone.
fn bare_host(property: &str) -> String {
    let lower = property.to_ascii_lowercase();
    let rest = lower
        .rsplit_once("://")
        .map_or(lower.as_str(), |(_, rest)| rest);
    let rest = rest.strip_prefix("sc-domain:").unwrap_or(rest);
    rest.strip_prefix("www.")
        .unwrap_or(rest)
        .trim_end_matches('/')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    const TODAY: Date = date(2026, 3, 1);

    #[test]
    fn ranges_end_three_days_ago_and_start_within_the_history() {
        let last = range(Days::Last(10), TODAY).unwrap();
        assert_eq!(
            last,
            Range {
                from: date(2026, 2, 17),
                to: date(2026, 2, 26)
            }
        );
        let all = range(Days::Last(100_000), TODAY).unwrap();
        assert_eq!(all.from, days_before(TODAY, HISTORY_DAYS));
        let between = |from, to| range(Days::Between { from, to }, TODAY);
        assert_eq!(
            between(date(2026, 2, 20), date(2026, 4, 1)).unwrap().to,
            date(2026, 2, 26)
        );
        assert_eq!(between(date(2026, 2, 27), date(2026, 2, 28)), None);
        assert_eq!(range(Days::Last(0), TODAY), None);
    }

    #[test]
    fn halves_cover_the_range_without_overlap() {
        for days in 1..40 {
            let range = Range {
                from: days_before(TODAY, days),
                to: TODAY,
            };
            let [newer, older] = halves(range);
            assert_eq!((older.from, newer.to), (range.from, range.to));
            assert_eq!(older.to.tomorrow().unwrap(), newer.from);
            assert!(older.from <= older.to);
        }
    }

    #[test]
    fn suggestions_are_of_the_same_or_a_similar_host() {
        let sites: Vec<Site> = [
            "sc-domain:alpha.example",
            "https://www.alpha.example/",
            "https://zzz.test/",
        ]
        .map(|url| Site {
            site_url: url.into(),
            permission_level: "siteOwner".into(),
        })
        .into();
        let words = did_you_mean("https://alpha.example/", &sites);
        assert_eq!(
            words,
            "; did you mean https://www.alpha.example/ or sc-domain:alpha.example?"
        );
        assert!(did_you_mean("https://other.org/", &sites).contains("3 properties"));
    }
}
