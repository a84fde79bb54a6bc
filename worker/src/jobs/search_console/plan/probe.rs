//! Asks Google which days exist, a light request a search type.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::civil::Date;
use shared::search_console::{Dimension, SearchType};

use super::super::api::Calls;
use super::super::calendar::days_before;
use super::super::client::{DataState, Query, ROW_LIMIT};
use super::super::page;
use super::super::rate::Weight;
use super::super::slice_rows::{Row, SliceRows};
use super::range::Range;
use crate::handler::HandlerError;

/// Days that the question for the first incomplete day covers.
const FRONTIER_DAYS: i64 = 10;
/// Search types that are probed at a time.
const PROBES_AT_ONCE: usize = 3;

/// What the probes of one search type found.
pub(super) struct Probe {
    pub(super) search_type: SearchType,
    /// Clicks and impressions of each day that exists.
    pub(super) days: BTreeMap<Date, Totals>,
    pub(super) first_incomplete: Option<Date>,
    pub(super) calls: u64,
    pub(super) repeated: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Totals {
    pub(super) clicks: u64,
    pub(super) impressions: u64,
}

pub(super) async fn probe_all(
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
            let day = |row: Row<'_>| {
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
