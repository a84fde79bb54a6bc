//! One page to be made: all that decides it, in one value that can be made elsewhere and kept under a key.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Zoned;

use super::render::{self, Shape};
use super::request::Request;
use super::window::Twist;
use crate::api::Format;
use crate::api::json::{Mask, pretty};
use crate::api::reply::gzip;
use crate::app::App;
use crate::cache::Page;
use crate::config::{Config, Spelling, TieMode};
use crate::fault::{Fault, Kind};
use crate::generator::{
    DataState, Dimension, Options, REVISION_DELAY_DAYS, RowSet, Selection, days_before,
    days_between, fnv, rows,
};

/// One page to be made, with everything that decides it.
pub(super) struct Job {
    options: Options,
    request: Request,
    now: Zoned,
    shape: Shape,
    metadata: Option<(String, String)>,
    format: Format,
    pub(super) twist: Twist,
    rows_key: String,
}

impl Job {
    pub(super) fn new(
        app: &App,
        config: &Config,
        request: Request,
        format: Format,
        mask: &Mask,
        fault: Option<Fault>,
    ) -> Self {
        let now = app.clock.now();
        let site = config
            .sites
            .iter()
            .find(|site| site.url == request.selection.site);
        let options = config.content(site.and_then(|site| site.profile));
        let kind = fault.map(|fault| fault.kind);
        let spelling = if kind == Some(Kind::MetadataCamel) {
            Spelling::Camel
        } else {
            config.spelling
        };
        Self {
            metadata: metadata(config, &request.selection, &now, spelling),
            rows_key: rows_key(&options, &request.selection, &now),
            twist: Twist::new(kind, config.tie_mode == TieMode::ShufflePerRequest),
            shape: Shape::new(mask),
            options,
            request,
            now,
            format,
        }
    }

    pub(super) fn page_key(&self) -> String {
        let Self {
            rows_key,
            request,
            shape,
            metadata,
            format,
            ..
        } = self;
        format!(
            "{rows_key}|{}|{}|{shape:?}|{metadata:?}|{format:?}",
            request.start_row, request.row_limit
        )
    }

    pub(super) fn page(&self, app: &App) -> Page {
        let make_rows = || rows(&self.options, &self.request.selection, &self.now);
        let set: Arc<RowSet> = app.cache.rows_or_make(&self.rows_key, make_rows);
        let places = self
            .twist
            .places(&set, self.request.start_row, self.request.row_limit);
        let compact = render::page(&set, &places, self.shape, self.metadata.as_ref());
        let text = if self.format.pretty {
            pretty(&compact)
        } else {
            compact
        };
        let body = if self.format.gzip {
            gzip(text.as_bytes())
        } else {
            Bytes::from(text)
        };
        Page {
            body,
            rows: places.len(),
        }
    }
}

/// Everything that decides the rows. Of the time only what matters: pages of old days outlive the day.
fn rows_key(options: &Options, selection: &Selection, now: &Zoned) -> String {
    let Selection {
        site,
        search_type,
        start,
        end,
        dimensions,
        filters,
        aggregation,
        data_state,
    } = selection;
    let by_hour = dimensions.contains(&Dimension::Hour);
    let age = days_between(*end, now.date());
    let is_settled = start == end
        && (options.final_lag + REVISION_DELAY_DAYS..=options.retention_days).contains(&age)
        && !by_hour;
    let time = if is_settled {
        String::new()
    } else if by_hour {
        now.strftime("%F %H").to_string()
    } else {
        now.date().to_string()
    };
    let options = fnv(&format!("{options:?}"));
    format!(
        "{options:x}|{site}|{search_type}|{start}|{end}|{dimensions:?}|{filters:?}|{aggregation:?}|{data_state}|{time}"
    )
}

/// Name and value of the metadata, when the request reaches into days that are not complete.
fn metadata(
    config: &Config,
    selection: &Selection,
    now: &Zoned,
    spelling: Spelling,
) -> Option<(String, String)> {
    let today = now.date();
    let touches_incomplete = selection.end >= days_before(today, config.final_lag - 1);
    let grouped = |dimension| selection.dimensions.contains(&dimension);
    if !touches_incomplete {
        return None;
    }
    let is_camel = spelling == Spelling::Camel;
    if selection.data_state == DataState::HourlyAll && grouped(Dimension::Hour) {
        let name = if is_camel {
            "firstIncompleteHour"
        } else {
            "first_incomplete_hour"
        };
        return Some((
            name.to_owned(),
            now.strftime("%Y-%m-%dT%H:00:00%:z").to_string(),
        ));
    }
    if selection.data_state == DataState::All && grouped(Dimension::Date) {
        let name = if is_camel {
            "firstIncompleteDate"
        } else {
            "first_incomplete_date"
        };
        return Some((
            name.to_owned(),
            days_before(today, config.first_incomplete_age).to_string(),
        ));
    }
    None
}
