//! Which slices are missing or due for another look, and the batches that fetch them.
//!
//! - a day that the probe lists, unless its slice is stored as final and lies before the re-sync window;
//! - a day that the probe does not list, only if rows of it are stored: they may have vanished.
//!
//! A day without data and without stored rows gets none: it is probed again by every sync, so nothing is
//! lost, and five hundred empty slices a search type are saved.

use std::cmp::Reverse;
use std::collections::HashMap;

use jiff::civil::Date;
use serde_json::value::RawValue;
use shared::name::{Key, PipelineName};
use shared::outcome::{FollowUp, MAX_FOLLOW_UP_BYTES};
use shared::search_console::{
    Days, DimensionSet, PLAN_PIPELINE, PlanPayload, SLICE_PIPELINE, SearchType, SlicePayload,
};

use super::super::Shared;
use super::super::api::Calls;
use super::super::calendar::{days_before, last_final_day};
use super::super::store::StoredSlice;
use super::probe::Probe;
use super::range::{Range, halves, range};
use crate::handler::HandlerError;

/// One property's plan in the making.
pub(super) struct Plan<'a> {
    pub(super) shared: &'a Shared,
    pub(super) input: &'a PlanPayload,
    pub(super) property: &'a str,
    pub(super) today: Date,
}

impl Plan<'_> {
    /// The slices to fetch, newest day first, and how many were left out as final.
    pub(super) async fn slices(
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
    pub(super) fn follow_ups(
        &self,
        payloads: &[SlicePayload],
    ) -> Result<Vec<FollowUp>, HandlerError> {
        let key = Key::new(self.property)
            .map_err(|e| HandlerError::fail("unknown_property", e.to_string()))?;
        let mut bytes = 0;
        let mut follow_ups = Vec::with_capacity(payloads.len());
        for payload in payloads {
            let follow_up = follow_up(SLICE_PIPELINE, &key, payload);
            bytes += follow_up.bytes();
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

fn follow_up(pipeline: &str, key: &Key, payload: &impl serde::Serialize) -> FollowUp {
    let json = serde_json::to_string(payload).expect("payloads are plain texts, dates and numbers");
    FollowUp {
        pipeline: PipelineName::new(pipeline).expect("the built-in names are well-formed"),
        key: key.clone(),
        payload: RawValue::from_string(json).expect("what was just written is JSON"),
    }
}
