//! How the key tuple of a row is packed into one integer, so that sorting integers sorts tuples.
//!
//! Each dimension takes as many bits as it needs, in request order. The date comes first whatever its
//! place: rows are sorted by date before anything else, so its place can never matter.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::Dimension;
use super::facts::{APPEARANCES, COUNTRIES, DEVICES};
use super::texts::Texts;

const HOURS_PER_DAY: u64 = 24;
/// Enough for every day that can be asked for: 511, more than the API keeps.
const DATE_BITS: u32 = 9;
const HOUR_BITS: u32 = DATE_BITS + 5;
const COUNTRY_BITS: u32 = 4;
const DEVICE_BITS: u32 = 2;
const APPEARANCE_BITS: u32 = 2;
/// The longest range of days that fits.
pub(crate) const MAX_DAYS: i32 = (1 << DATE_BITS) - 1;

/// The order numbers of all dimensions of one fact.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Orders {
    pub(crate) day: u64,
    pub(crate) hour: u64,
    pub(crate) query: u64,
    pub(crate) page: u64,
    pub(crate) country: u64,
    pub(crate) device: u64,
    pub(crate) appearance: u64,
}

/// Where each dimension lies in a packed key, and what its numbers mean.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Dimension, position of its lowest bit, mask; in request order.
    fields: Vec<(Dimension, u32, u64)>,
    first_day: Date,
    time_zone: TimeZone,
    base_address: String,
    base_address_json: String,
    pub(crate) texts: Arc<Texts>,
    countries: [&'static str; COUNTRIES.len()],
    devices: [&'static str; DEVICES.len()],
}

impl Layout {
    pub(crate) fn new(
        dimensions: &[Dimension],
        texts: Arc<Texts>,
        base_address: String,
        first_day: Date,
        time_zone: TimeZone,
    ) -> Self {
        let mut bit = 0;
        let mut fields: Vec<(Dimension, u32, u64)> = Vec::with_capacity(dimensions.len());
        let lowest_first = dimensions.iter().rev().filter(|d| **d != Dimension::Date);
        for &dimension in lowest_first.chain(dimensions.iter().filter(|d| **d == Dimension::Date)) {
            let width = match dimension {
                Dimension::Date => DATE_BITS,
                Dimension::Hour => HOUR_BITS,
                Dimension::Query => texts.queries.len().ilog2(),
                Dimension::Page => texts.pages.len().ilog2(),
                Dimension::Country => COUNTRY_BITS,
                Dimension::Device => DEVICE_BITS,
                Dimension::SearchAppearance => APPEARANCE_BITS,
            };
            fields.push((dimension, bit, (1 << width) - 1));
            bit += width;
        }
        fields.sort_by_key(|(dimension, ..)| dimensions.iter().position(|d| d == dimension));
        let mut countries = COUNTRIES.map(|(code, _)| code);
        countries.sort_unstable();
        let mut devices = DEVICES.map(|(name, _)| name);
        devices.sort_unstable();
        let base_address_json = escaped(&base_address);
        Self {
            fields,
            first_day,
            time_zone,
            base_address,
            base_address_json,
            texts,
            countries,
            devices,
        }
    }

    pub(crate) fn pack(&self, orders: Orders) -> u64 {
        self.fields.iter().fold(0, |key, (dimension, shift, _)| {
            let order = match dimension {
                Dimension::Date => orders.day,
                Dimension::Hour => orders.day * HOURS_PER_DAY + orders.hour,
                Dimension::Query => orders.query,
                Dimension::Page => orders.page,
                Dimension::Country => orders.country,
                Dimension::Device => orders.device,
                Dimension::SearchAppearance => orders.appearance,
            };
            key | (order << shift)
        })
    }

    /// The texts of a key, in request order.
    pub(crate) fn keys(&self, key: u64) -> impl Iterator<Item = Cow<'_, str>> {
        self.fields.iter().map(move |(dimension, shift, mask)| {
            self.text(
                *dimension,
                usize::try_from((key >> shift) & mask).unwrap_or(usize::MAX),
            )
        })
    }

    pub(crate) fn key_count(&self) -> usize {
        self.fields.len()
    }

    /// Whether two keys belong to the same date, or dates are not in the keys.
    pub(crate) fn same_date(&self, one: u64, other: u64) -> bool {
        self.fields
            .iter()
            .filter(|(dimension, ..)| *dimension == Dimension::Date)
            .all(|(_, shift, _)| one >> shift == other >> shift)
    }

    /// Adds one text of a key to a JSON string.
    pub(crate) fn write_key(&self, key: u64, index: usize, out: &mut String) {
        let (dimension, shift, mask) = self.fields[index];
        let order = usize::try_from((key >> shift) & mask).unwrap_or(usize::MAX);
        match dimension {
            Dimension::Page if !self.texts.needs_escape => {
                out.push_str(&self.base_address_json);
                out.push_str(self.texts.pages.text(order));
            }
            Dimension::Page | Dimension::Query if self.texts.needs_escape => {
                out.push_str(&escaped(&self.text(dimension, order)));
            }
            _ => out.push_str(&self.text(dimension, order)),
        }
    }

    /// The text behind one order number.
    pub(crate) fn text(&self, dimension: Dimension, order: usize) -> Cow<'_, str> {
        match dimension {
            Dimension::Date => Cow::Owned(self.day(order as u64).to_string()),
            Dimension::Hour => Cow::Owned(self.hour_text(order as u64)),
            Dimension::Query => Cow::Borrowed(self.texts.queries.text(order)),
            Dimension::Page => {
                Cow::Owned([self.base_address.as_str(), self.texts.pages.text(order)].concat())
            }
            Dimension::Country => Cow::Borrowed(self.countries[order]),
            Dimension::Device => Cow::Borrowed(self.devices[order]),
            Dimension::SearchAppearance => Cow::Borrowed(APPEARANCES[order]),
        }
    }

    fn day(&self, order: u64) -> Date {
        let days = i64::try_from(order).unwrap_or(0);
        self.first_day.saturating_add(jiff::Span::new().days(days))
    }

    /// `2025-04-07T00:00:00-07:00`, with the offset of that very hour.
    fn hour_text(&self, order: u64) -> String {
        let hour = i8::try_from(order % HOURS_PER_DAY).unwrap_or(0);
        let civil = self.day(order / HOURS_PER_DAY).at(hour, 0, 0, 0);
        match civil.to_zoned(self.time_zone.clone()) {
            Ok(zoned) => zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
            Err(_) => civil.to_string(),
        }
    }

    /// Order numbers of the countries and devices that each byte stands for.
    pub(crate) fn byte_tables(&self) -> ([u64; 256], [u64; 256]) {
        (
            table(&COUNTRIES, &self.countries),
            table(&DEVICES, &self.devices),
        )
    }
}

/// A text as it stands between the quotes of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// For each byte the place, among the sorted names, of the first entry whose threshold is above it.
fn table(entries: &[(&str, u16)], sorted: &[&str]) -> [u64; 256] {
    std::array::from_fn(|byte| {
        let name = entries
            .iter()
            .find(|(_, threshold)| usize::from(*threshold) > byte)
            .map_or("", |e| e.0);
        sorted.iter().position(|s| *s == name).unwrap_or(0) as u64
    })
}
