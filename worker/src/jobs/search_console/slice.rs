//! Second stage, one batch a slice: fetches all pages of one site, search type, dimension set and day,
//! makes sure that they are one consistent whole, and hands them to the sink.
//!
//! When is a slice complete? After an empty page, always. After a short page only when the day's totals
//! prove that nothing is missing: every row has at least one impression, so for sets without `page` and
//! `query`, whose impressions must add up to the day's, equal sums leave no room for another row. Sums of
//! clicks alone would prove too little, because most rows have none.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::search_console::{Dimension, SlicePayload, normalize_property};

use super::Shared;
use super::api::Calls;
use super::calendar::is_final;
use super::client::{DataState, Query, ROW_LIMIT};
use super::page;
use super::rate::Weight;
use super::slice_rows::{KeyIndex, Slice, SliceId, SliceRows};
use crate::handler::{BatchContext, Handler, HandlerError, Output, Rows};

/// Google gives at most this many rows a day and search type, and does not say when there were more.
const CAP: usize = 50_000;
/// How often a slice that contradicts itself is fetched again before it is left for later.
const MAX_REFETCHES: u32 = 2;
/// Far beyond any slice: a server that never sends an empty page must not fill the memory.
const MAX_ROWS: usize = 2_000_000;

/// The handler of `gsc.slice`.
pub struct SliceHandler {
    pub(super) shared: Arc<Shared>,
}

/// The day's totals, which a slice is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Control {
    clicks: u64,
    impressions: u64,
}

/// All pages of a slice.
struct Fetched {
    rows: SliceRows,
    aggregation: Option<String>,
    repeated_keys: usize,
}

/// What the totals say about a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Fits,
    Differs,
}

#[async_trait]
impl Handler for SliceHandler {
    type Input = SlicePayload;

    async fn handle(
        &self,
        input: SlicePayload,
        ctx: &BatchContext,
    ) -> Result<Output, HandlerError> {
        let api = self.shared.api()?;
        // Planned slices are spelled right; those that somebody submits may not be.
        let property = normalize_property(&input.property)
            .map_err(|error| HandlerError::fail("unknown_property", error.to_string()))?;
        let id = SliceId {
            property,
            search_type: input.search_type,
            dimensions: input.dimensions.clone(),
            date: input.date,
        };
        let mut fetch = Fetch {
            calls: Calls::new(api, ctx, &id.property),
            id: &id,
            refetches: 0,
        };
        let result = fetch.consistent(&input).await;
        if let Err(error) = &result {
            fetch.calls.note_verdict(&id, error).await;
        }
        let (fetched, remark) = result?;
        let mut statistics = fetch.calls.statistics();
        if fetch.refetches > 0 {
            statistics.insert("slices_refetched".into(), 1);
        }
        let truncated = fetched.rows.len() >= CAP;
        if truncated {
            statistics.insert("slices_truncated".into(), 1);
        }
        let today = self.shared.calendar.today();
        let is_final = is_final(
            id.date,
            today,
            input.first_incomplete,
            fetched.rows.is_empty(),
        );
        let api_calls = fetch.calls.made;
        let slice = Slice {
            rows: fetched.rows,
            is_final,
            truncated,
            aggregation: fetched.aggregation,
            api_calls,
            remark,
            fetched_at: Timestamp::now(),
            id,
        };
        Ok(Output {
            rows: Rows::Slice(Box::new(slice)),
            statistics,
            ..Output::default()
        })
    }
}

/// One slice being fetched.
struct Fetch<'a> {
    calls: Calls<'a>,
    id: &'a SliceId,
    refetches: u32,
}

impl Fetch<'_> {
    /// Fetches until the slice contradicts neither itself nor the day's totals, a bounded number of times.
    async fn consistent(
        &mut self,
        input: &SlicePayload,
    ) -> Result<(Fetched, Option<String>), HandlerError> {
        let mut control = match (input.control_clicks, input.control_impressions) {
            (Some(clicks), Some(impressions)) => Some(Control {
                clicks,
                impressions,
            }),
            _ => None,
        };
        let mut previous = None;
        loop {
            let fetched = self.all_pages(control).await?;
            let mut hash = None;
            if fetched.repeated_keys == 0 {
                if self.check(&fetched.rows, control) == Check::Fits {
                    return Ok((fetched, None));
                }
                hash = Some(fetched.rows.content_hash());
                if self.refetches == MAX_REFETCHES && previous == hash {
                    return Ok((fetched, Some(remark(control))));
                }
            }
            if self.refetches == MAX_REFETCHES {
                let problem = if fetched.repeated_keys > 0 {
                    "keys repeat between its pages"
                } else {
                    "its rows keep changing"
                };
                return Err(HandlerError::retry(format!(
                    "the day is being rewritten by Google: {problem}"
                )));
            }
            self.refetches += 1;
            previous = hash;
            // The day may have been revised since it was planned.
            control = self.day_totals().await?;
        }
    }

    async fn all_pages(&mut self, control: Option<Control>) -> Result<Fetched, HandlerError> {
        let width = self.id.dimensions.dimensions().len();
        let mut fetched = Fetched {
            rows: SliceRows::new(width),
            aggregation: None,
            repeated_keys: 0,
        };
        let mut keys = KeyIndex::default();
        let weight = Weight::of(&self.id.dimensions);
        loop {
            let query = self.query(self.id.dimensions.dimensions(), fetched.rows.len());
            let rows = &mut fetched.rows;
            let page = self
                .calls
                .query(&query, weight, |body| page::read(body, rows))
                .await?;
            fetched.aggregation = page.aggregation.or(fetched.aggregation);
            fetched.repeated_keys += keys.count_repeated(&fetched.rows);
            let is_complete =
                page.rows == 0 || page.rows < ROW_LIMIT && self.is_proven(&fetched.rows, control);
            // Pages that repeat keys are of two states of the day: more of them would not help.
            if is_complete || fetched.repeated_keys > 0 {
                return Ok(fetched);
            }
            if fetched.rows.len() > MAX_ROWS {
                return Err(HandlerError::retry(format!(
                    "the slice does not end after {MAX_ROWS} rows"
                )));
            }
        }
    }

    /// Rows start where those at hand end: after a full page that is Google's own rule, after a short one
    /// that was not the last it is the only way to miss nothing.
    fn query(&self, dimensions: &[Dimension], start_row: usize) -> Query {
        Query {
            start_date: self.id.date,
            end_date: self.id.date,
            dimensions: dimensions.to_vec(),
            search_type: self.id.search_type,
            data_state: DataState::Final,
            row_limit: ROW_LIMIT,
            start_row,
        }
    }

    async fn day_totals(&mut self) -> Result<Option<Control>, HandlerError> {
        let query = self.query(&[Dimension::Date], 0);
        let mut rows = SliceRows::new(1);
        self.calls
            .query(&query, Weight::Light, |body| page::read(body, &mut rows))
            .await?;
        Ok(Some(Control {
            clicks: rows.clicks(),
            impressions: rows.impressions(),
        }))
    }

    fn has_page(&self) -> bool {
        self.id.dimensions.contains(Dimension::Page)
    }

    fn has_query(&self) -> bool {
        self.id.dimensions.contains(Dimension::Query)
    }

    fn is_proven(&self, rows: &SliceRows, control: Option<Control>) -> bool {
        let sums = Control {
            clicks: rows.clicks(),
            impressions: rows.impressions(),
        };
        !self.has_page() && !self.has_query() && control == Some(sums)
    }

    /// Rare queries are left out of rows with `query`, and the cap cuts rows: there, sums may be smaller.
    /// Impressions of page sets count a result page once for each of its links.
    fn check(&self, rows: &SliceRows, control: Option<Control>) -> Check {
        let Some(control) = control else {
            return Check::Fits;
        };
        let clicks = rows.clicks();
        let fits = if self.has_query() || rows.len() >= CAP {
            clicks <= control.clicks
        } else {
            clicks == control.clicks && (!rows.is_empty() || control.impressions == 0)
        };
        if fits { Check::Fits } else { Check::Differs }
    }
}

fn remark(control: Option<Control>) -> String {
    let clicks = control.map_or(0, |control| control.clicks);
    format!(
        "the rows' clicks do not add up to the day's total of {clicks}, although the rows are stable"
    )
}
