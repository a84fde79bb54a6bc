//! Step 5 of generator v1: the texts of queries and pages, and their order.
//!
//! Rows are aggregated and sorted as integers. For that to give the order of the texts, every text has an
//! order number: its place among all texts of its kind, compared by bytes.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use super::nasty;
use super::primitives::mix;
use super::profile::Profile;

/// Texts of one kind, in order of their bytes.
#[derive(Debug)]
pub(crate) struct Table {
    /// All texts joined, in order.
    joined: String,
    /// Where each text ends.
    ends: Vec<u32>,
    /// Order number of each rank.
    order: Vec<u32>,
}

impl Table {
    fn new(count: u64, text: impl Fn(u64, &mut String)) -> Self {
        let mut texts: Vec<(String, usize)> = (0..count)
            .map(|rank| {
                let mut out = String::new();
                text(rank, &mut out);
                out
            })
            .zip(0..)
            .collect();
        texts.sort_unstable();
        let mut table = Self {
            joined: String::new(),
            ends: Vec::with_capacity(texts.len()),
            order: vec![0; texts.len()],
        };
        for (place, (text, rank)) in (0..).zip(&texts) {
            table.joined.push_str(text);
            table
                .ends
                .push(u32::try_from(table.joined.len()).unwrap_or(u32::MAX));
            table.order[*rank] = place;
        }
        table
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The order number of a rank.
    pub(crate) fn order_of(&self, rank: u64) -> u64 {
        u64::from(self.order[usize::try_from(rank).unwrap_or(usize::MAX)])
    }

    /// The text with this order number.
    pub(crate) fn text(&self, order: usize) -> &str {
        let start = if order == 0 {
            0
        } else {
            self.ends[order - 1] as usize
        };
        &self.joined[start..self.ends[order] as usize]
    }
}

/// Writes the text of a rank.
type Spell = fn(u64, &mut String);

/// The queries and pages of one profile.
#[derive(Debug)]
pub(crate) struct Texts {
    pub(crate) queries: Table,
    /// What follows the site's own base address.
    pub(crate) pages: Table,
    /// Whether any text needs escaping in JSON.
    pub(crate) needs_escape: bool,
}

impl Texts {
    /// The texts of a profile, made once per process: the large ones take some 100 ms.
    pub(crate) fn shared(profile: Profile, nasty: bool) -> Arc<Self> {
        static MADE: [OnceLock<Arc<Texts>>; 2 * Profile::ALL.len()] =
            [const { OnceLock::new() }; 2 * Profile::ALL.len()];
        let slot = 2 * (profile as usize) + usize::from(nasty);
        Arc::clone(MADE[slot].get_or_init(|| Arc::new(Self::new(profile, nasty))))
    }

    fn new(profile: Profile, nasty: bool) -> Self {
        let (query, page): (Spell, Spell) = if nasty {
            (nasty::query, nasty::page)
        } else {
            (query, page)
        };
        Self {
            queries: Table::new(1 << profile.query_bits(), query),
            pages: Table::new(1 << profile.page_bits(), page),
            needs_escape: nasty,
        }
    }
}

/// `query <rank in hex> <a number>`.
pub(crate) fn query(rank: u64, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(out, "query {rank:x} {}", mix(rank) % 9973);
}

/// `p/<rank>`, below the site's base address.
pub(crate) fn page(rank: u64, out: &mut String) {
    let _ = write!(out, "p/{rank}");
}

/// The address that the pages of a property start with.
pub(crate) fn base_address(site: &str) -> String {
    match site.split_once(':') {
        Some((_, domain)) if !site.starts_with("http") => format!("https://{domain}/"),
        _ => site.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_numbers_follow_the_bytes_of_the_texts() {
        let table = Table::new(1000, page);
        let texts: Vec<&str> = (0..table.len()).map(|order| table.text(order)).collect();
        assert!(texts.is_sorted());
        for rank in [0, 7, 10, 999] {
            let order = usize::try_from(table.order_of(rank)).unwrap();
            assert_eq!(table.text(order), format!("p/{rank}"));
        }
    }

    #[test]
    fn pages_start_with_the_property() {
        assert_eq!(
            base_address("sc-domain:alpha.example"),
            "https://alpha.example/"
        );
        assert_eq!(
            base_address("https://gamma.example/shop/"),
            "https://gamma.example/shop/"
        );
    }
}
