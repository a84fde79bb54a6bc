//! Steps 3 and 4 of generator v1: the day key, and fact number i of a day.
//!
//! A fact is one search by one person. It is a pure function of (seed, site, day, type, i) and of the
//! age of the day, so that a day is incomplete at first, then final, then slightly revised.

use super::primitives::{GOLDEN, fnv, low, mix};
use super::{EmptyRange, Options, SearchType};
use jiff::civil::Date;

/// Country codes, each with the threshold below which a byte means it. The last one means "unknown".
pub(crate) const COUNTRIES: [(&str, u16); 14] = [
    ("usa", 96),
    ("gbr", 128),
    ("deu", 152),
    ("fra", 170),
    ("ind", 188),
    ("can", 202),
    ("aus", 212),
    ("bra", 222),
    ("esp", 230),
    ("ita", 238),
    ("nld", 244),
    ("jpn", 249),
    ("pol", 253),
    ("zzz", 256),
];
/// Devices, in the same way.
pub(crate) const DEVICES: [(&str, u16); 3] = [("MOBILE", 154), ("DESKTOP", 246), ("TABLET", 256)];
/// Search appearances, chosen by the query's rank modulo their number.
pub(crate) const APPEARANCES: [&str; 3] = ["AMP_BLUE_LINK", "RICHCARD", "VIDEO"];

/// Clicks per thousand impressions for results 1 to 10, and for all later ones.
const CTR_PERMILLE: [u64; 10] = [300, 160, 110, 80, 60, 45, 35, 30, 25, 22];
const CTR_PERMILLE_BELOW: u64 = 8;
/// How many facts per thousand of a partial day are known at age 0, 1 and later.
const PARTIAL_PERMILLE: [u64; 3] = [250, 700, 970];
/// Days after `final_lag` until the late revision; below these marks a fact vanishes, or grows.
pub(crate) const REVISION_DELAY_DAYS: i32 = 2;
const REVISION_VANISHES: u64 = 2;
const REVISION_GROWS: u64 = 12;
/// Queries below this rank are never anonymous.
const ANONYMOUS_FROM: u64 = 64;
const ANONYMOUS_SALT: u64 = 0xA_11CE;
const ANONYMOUS_PERCENT: u64 = 46;

/// One search: ranks, not texts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fact {
    /// Rank of the query; low ranks are frequent.
    pub(crate) query: u64,
    /// Rank of the page clicked or shown first.
    pub(crate) page: u64,
    /// A byte to look up in [`COUNTRIES`].
    pub(crate) country: u8,
    /// A byte to look up in [`DEVICES`].
    pub(crate) device: u8,
    pub(crate) clicks: u64,
    pub(crate) impressions: u64,
    /// Ten times the position of the first page.
    pub(crate) position_x10: u64,
    /// How many pages of the site were shown, 1 to 3.
    pub(crate) pages: u64,
    /// Hour of the day, 0 to 23. Ours, not part of generator v1.
    pub(crate) hour: usize,
}

/// All facts of one (site, day, type), seen at one age.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Day {
    key: u64,
    count: u64,
    age: i32,
    final_lag: i32,
    query_bits: u64,
    page_bits: u64,
}

impl Day {
    pub(crate) fn new(
        options: &Options,
        site: &str,
        search_type: SearchType,
        date: Date,
        age: i32,
    ) -> Self {
        let site_hash = fnv(site);
        let days_since_1970 = days_since_1970(date);
        let type_index = search_type as u64;
        let key = mix(options.seed
            ^ site_hash
            ^ mix(days_since_1970.wrapping_mul(0x2545_F491_4F6C_DD1D))
            ^ (type_index + 1).wrapping_mul(GOLDEN));
        let facts = options.profile.facts();
        let absent_type = matches!(
            search_type,
            SearchType::News | SearchType::Discover | SearchType::GoogleNews
        ) && site_hash.is_multiple_of(3);
        let count = if absent_type
            || options
                .empty
                .iter()
                .any(|range: &EmptyRange| range.covers(site, date))
        {
            0
        } else if search_type == SearchType::Web {
            facts
        } else {
            facts >> (2 + type_index)
        };
        Self {
            key,
            count,
            age,
            final_lag: options.final_lag,
            query_bits: options.profile.query_bits(),
            page_bits: options.profile.page_bits(),
        }
    }

    /// The facts that are known at this age.
    pub(crate) fn facts(self) -> impl Iterator<Item = Fact> {
        (0..self.count).filter_map(move |index| self.fact(index))
    }

    /// Page number `extra` of a fact whose first page is `page`.
    pub(crate) fn page_of(self, page: u64, extra: u64) -> u64 {
        if extra == 0 {
            page
        } else {
            low(2 * page + extra, self.page_bits)
        }
    }

    fn fact(self, index: u64) -> Option<Fact> {
        let h = mix(self.key.wrapping_add((index + 1).wrapping_mul(GOLDEN)));
        let h2 = mix(h ^ GOLDEN);
        let h3 = mix(h2 ^ GOLDEN);

        let largest = 1 << ((h2 >> 16) | 4096).trailing_zeros();
        let impressions = 1 + ((h2 >> 32) & (largest - 1));
        let position_x10 = 10 + h3 % 400;
        let result = usize::try_from(position_x10 / 10).unwrap_or(usize::MAX);
        let ctr = CTR_PERMILLE
            .get(result - 1)
            .copied()
            .unwrap_or(CTR_PERMILLE_BELOW);
        let clicks = impressions.min((impressions * ctr + (h3 >> 16) % 1000) / 1000);
        let revision = self.revision((h3 >> 32) % 1000)?;

        Some(Fact {
            query: ranked(h, self.query_bits),
            page: ranked(h >> 32, self.page_bits),
            country: h2.to_le_bytes()[0],
            device: h2.to_le_bytes()[1],
            clicks,
            impressions: impressions + revision,
            position_x10,
            pages: 1 + u64::from((h3 >> 44) % 100 < 30) + u64::from((h3 >> 52) % 100 < 10),
            hour: usize::try_from((h3 >> 20) % 24).unwrap_or(0),
        })
    }

    /// Impressions added by the late revision; `None` when the fact is not known at this age.
    fn revision(self, draw: u64) -> Option<u64> {
        if self.age < self.final_lag {
            let age = usize::try_from(self.age)
                .unwrap_or(0)
                .min(PARTIAL_PERMILLE.len() - 1);
            (draw < PARTIAL_PERMILLE[age]).then_some(0)
        } else if self.age < self.final_lag + REVISION_DELAY_DAYS || draw >= REVISION_GROWS {
            Some(0)
        } else if draw < REVISION_VANISHES {
            None
        } else {
            Some(1 + draw % 3)
        }
    }
}

/// A rank below `2^bits` whose frequency falls with its size.
fn ranked(h: u64, bits: u64) -> u64 {
    let b = h % bits;
    (1 << b) - 1 + low(h >> 8, b)
}

/// Whether Google would hide this query for the searchers' privacy.
pub(crate) fn is_anonymous(query: u64) -> bool {
    query >= ANONYMOUS_FROM && mix(query ^ ANONYMOUS_SALT) % 100 < ANONYMOUS_PERCENT
}

fn days_since_1970(date: Date) -> u64 {
    let days = date.duration_since(Date::constant(1970, 1, 1)).as_hours() / 24;
    u64::try_from(days).unwrap_or(0)
}
