//! Steps 6 to 8 of generator v1: from facts to the rows of an answer, in answer order.

use std::borrow::Cow;
use std::cmp::Reverse;

use jiff::Zoned;
use jiff::civil::Date;

use super::facts::{APPEARANCES, COUNTRIES, DEVICES, Day, Fact, is_anonymous};
use super::filter::Passing;
use super::layout::{Layout, MAX_DAYS, Orders};
use super::texts::{Texts, base_address};
use super::{Aggregation, DataState, Dimension, Options, Row, RowSet, Selection};

/// How far back hours are kept.
const HOURLY_DAYS: i32 = 10;

/// The rows of `selection`, as the API would serve them at `now` (Pacific time).
#[must_use]
pub fn rows(options: &Options, selection: &Selection, now: &Zoned) -> RowSet {
    let (first, last) = served_days(options, selection, now);
    let layout = Layout::new(
        &selection.dimensions,
        Texts::shared(options.profile, options.nasty_text),
        base_address(&selection.site),
        first,
        now.time_zone().clone(),
    );
    let plan = Plan::new(selection, layout);
    let mut all: Vec<Row> = Vec::new();
    let mut days = 0;
    for (order, date) in (0..).zip(
        first
            .series(jiff::Span::new().days(1))
            .take_while(|date| *date <= last),
    ) {
        let age = days_between(date, now.date());
        let day = Day::new(options, &selection.site, selection.search_type, date, age);
        let mut of_day = plan.day_rows(day, order, &plan.hours(date, now));
        sort(&mut of_day);
        of_day.truncate(options.row_cap);
        all.append(&mut of_day);
        days += 1;
    }
    // With the date in the keys the days are in order already and no two of them share a key.
    if days > 1 && !selection.dimensions.contains(&Dimension::Date) {
        merge(&mut all);
        sort(&mut all);
    }
    all.shrink_to_fit();
    RowSet {
        rows: all,
        layout: plan.layout,
        aggregation: selection.counted(),
        has_position: selection.search_type.has_position(),
    }
}

/// The first and last day that are served at all; the first is after the last when there is none.
fn served_days(options: &Options, selection: &Selection, now: &Zoned) -> (Date, Date) {
    let today = now.date();
    let keep = if selection.dimensions.contains(&Dimension::Hour) {
        HOURLY_DAYS
    } else {
        options.retention_days
    };
    let lag = if selection.data_state == DataState::Final {
        options.final_lag
    } else {
        0
    };
    let first = selection.start.max(days_before(today, keep.min(MAX_DAYS)));
    (first, selection.end.min(days_before(today, lag)))
}

pub(crate) fn days_before(date: Date, days: i32) -> Date {
    date.saturating_sub(jiff::Span::new().days(days))
}

pub(crate) fn days_between(from: Date, to: Date) -> i32 {
    i32::try_from(to.duration_since(from).as_hours() / 24).unwrap_or(i32::MAX)
}

/// By clicks, then impressions, both falling; then by key.
fn sort(rows: &mut [Row]) {
    rows.sort_unstable_by_key(|row| (Reverse(row.clicks), Reverse(row.impressions), row.key));
}

/// Adds up the rows that share a key.
fn merge(rows: &mut Vec<Row>) {
    rows.sort_unstable_by_key(|row| row.key);
    rows.dedup_by(|later, kept| {
        let same = later.key == kept.key;
        if same {
            kept.clicks += later.clicks;
            kept.impressions += later.impressions;
            kept.weight += later.weight;
        }
        same
    });
}

/// What is the same for every fact of a request.
struct Plan {
    layout: Layout,
    by_page: bool,
    hides_anonymous: bool,
    by_hour: bool,
    country_of: [u64; 256],
    device_of: [u64; 256],
    queries: Passing,
    pages: Passing,
    countries: Passing,
    devices: Passing,
    appearances: Passing,
}

impl Plan {
    fn new(selection: &Selection, layout: Layout) -> Self {
        let (country_of, device_of) = layout.byte_tables();
        let passing = |dimension, count| {
            let texts = (0..count).map(|order| layout.text(dimension, order));
            Passing::new(&selection.filters, dimension, texts)
        };
        Self {
            by_page: selection.counted() == Aggregation::ByPage,
            hides_anonymous: selection.touches(Dimension::Query),
            by_hour: selection.dimensions.contains(&Dimension::Hour),
            country_of,
            device_of,
            queries: passing(Dimension::Query, layout.texts.queries.len()),
            pages: passing(Dimension::Page, layout.texts.pages.len()),
            countries: passing(Dimension::Country, COUNTRIES.len()),
            devices: passing(Dimension::Device, DEVICES.len()),
            appearances: Passing::new(
                &selection.filters,
                Dimension::SearchAppearance,
                APPEARANCES.into_iter().map(Cow::Borrowed),
            ),
            layout,
        }
    }

    fn day_rows(&self, day: Day, day_order: u64, hours: &[u64; 24]) -> Vec<Row> {
        let mut rows = Vec::new();
        for fact in day.facts() {
            let orders = self.orders(&fact, day_order, hours[fact.hour % hours.len()]);
            if self.drops(&fact, orders) {
                continue;
            }
            for extra in 0..if self.by_page { fact.pages } else { 1 } {
                let page = self
                    .layout
                    .texts
                    .pages
                    .order_of(day.page_of(fact.page, extra));
                if !self.pages.allows(page) {
                    continue;
                }
                rows.push(Row {
                    key: self.layout.pack(Orders { page, ..orders }),
                    clicks: if extra == 0 { fact.clicks } else { 0 },
                    impressions: fact.impressions,
                    weight: (fact.position_x10 + 10 * extra) * fact.impressions,
                });
            }
        }
        merge(&mut rows);
        rows
    }

    /// The hour that each of a fact's 24 hours lands in: never one that is still to come, nor the one that
    /// is skipped when summer time begins.
    fn hours(&self, date: Date, now: &Zoned) -> [u64; 24] {
        if !self.by_hour {
            return [0; 24];
        }
        std::array::from_fn(|hour| {
            let hour = i8::try_from(hour).unwrap_or(0);
            let known = if date == now.date() {
                hour % (now.hour() + 1)
            } else {
                hour
            };
            let real = date
                .at(known, 0, 0, 0)
                .to_zoned(now.time_zone().clone())
                .map_or(known, |zoned| zoned.hour());
            u64::try_from(real).unwrap_or(0)
        })
    }

    fn orders(&self, fact: &Fact, day: u64, hour: u64) -> Orders {
        Orders {
            day,
            hour,
            query: self.layout.texts.queries.order_of(fact.query),
            page: 0,
            country: self.country_of[usize::from(fact.country)],
            device: self.device_of[usize::from(fact.device)],
            appearance: fact.query % APPEARANCES.len() as u64,
        }
    }

    fn drops(&self, fact: &Fact, orders: Orders) -> bool {
        (self.hides_anonymous && is_anonymous(fact.query))
            || !self.queries.allows(orders.query)
            || !self.countries.allows(orders.country)
            || !self.devices.allows(orders.device)
            || !self.appearances.allows(orders.appearance)
    }
}
