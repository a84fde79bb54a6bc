//! One slice in memory, from the API's pages to the sink: all texts in one arena, numbers beside it.
//! A slice of 50,000 rows costs three allocations instead of a quarter of a million.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use jiff::Timestamp;
use jiff::civil::Date;
use shared::search_console::{DimensionSet, SearchType};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Which slice: one site, one search type, one dimension set, one Pacific day. The unit of fetching,
/// retrying and replacing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SliceId {
    /// The property, as Search Console spells it.
    pub property: String,
    /// The search type.
    pub search_type: SearchType,
    /// What rows are grouped by.
    pub dimensions: DimensionSet,
    /// The Pacific day.
    pub date: Date,
}

/// A whole slice, ready to replace what the sink has of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Which one.
    pub id: SliceId,
    /// Its rows.
    pub rows: SliceRows,
    /// Google will hardly change it any more (see `calendar::is_final`).
    pub is_final: bool,
    /// Google's cap was reached: rows are missing, and Google does not say which.
    pub truncated: bool,
    /// `byPage` or `byProperty`, as the API named it.
    pub aggregation: Option<String>,
    /// How many calls it took.
    pub api_calls: u64,
    /// What a person should know about it, if anything.
    pub remark: Option<String>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}

impl Slice {
    /// Where the slice stands, in one closed word: `truncated`, `final` or `provisional`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.truncated {
            "truncated"
        } else if self.is_final {
            "final"
        } else {
            "provisional"
        }
    }
}

/// The numbers of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbers {
    /// How often the link was clicked.
    pub clicks: u64,
    /// How often it was shown.
    pub impressions: u64,
    /// Its average position; discover and Google News have none.
    pub position: Option<f64>,
}

/// Rows of one slice, in Google's order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SliceRows {
    /// Keys of a row.
    width: usize,
    /// All keys of all rows, one after the other.
    texts: String,
    /// Where each key ends in `texts`; it starts where the one before ends.
    ends: Vec<u32>,
    numbers: Vec<Numbers>,
}

/// Order-independent hash of a slice's rows (sum of the rows' 128-bit hashes), so that ties in another
/// order are no change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentHash(u128);

impl ContentHash {
    /// The bytes that databases store.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// Why a row cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Another number of keys than dimensions were asked for.
    #[error("a row has {found} keys where {expected} dimensions were asked for")]
    Keys {
        /// Dimensions.
        expected: usize,
        /// Keys.
        found: usize,
    },
    /// More text than offsets can address.
    #[error("the slice has more than 4 GiB of text")]
    TooLarge,
}

impl SliceRows {
    /// No rows yet, of `width` keys each.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self {
            width,
            ..Self::default()
        }
    }

    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Keys of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes of all keys.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.texts.len()
    }

    /// Adds one key of the row that [`SliceRows::finish_row`] will complete.
    ///
    /// NUL becomes U+FFFD: PostgreSQL cannot store it, and both sinks must hold the same rows.
    pub(super) fn push_key(&mut self, key: &str) -> Result<(), RowError> {
        if key.contains('\0') {
            self.texts.push_str(&key.replace('\0', "\u{fffd}"));
        } else {
            self.texts.push_str(key);
        }
        let end = u32::try_from(self.texts.len()).map_err(|_| RowError::TooLarge)?;
        self.ends.push(end);
        Ok(())
    }

    /// Completes a row whose keys were pushed.
    pub(super) fn finish_row(&mut self, numbers: Numbers) -> Result<(), RowError> {
        let found = self.ends.len() - self.numbers.len() * self.width;
        if found != self.width {
            return Err(RowError::Keys {
                expected: self.width,
                found,
            });
        }
        self.numbers.push(numbers);
        Ok(())
    }

    /// Adds a row.
    pub fn push(&mut self, keys: &[&str], numbers: Numbers) -> Result<(), RowError> {
        for key in keys {
            self.push_key(key)?;
        }
        self.finish_row(numbers)
    }

    /// Drops all rows from `len` on, and any keys of an unfinished row.
    pub(super) fn truncate(&mut self, len: usize) {
        self.numbers.truncate(len);
        self.ends.truncate(len * self.width);
        self.texts
            .truncate(self.ends.last().map_or(0, |end| *end as usize));
    }

    /// The rows, in order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        (0..self.len()).map(|index| self.row(index))
    }

    /// The row at `index`.
    ///
    /// # Panics
    /// When there are fewer rows.
    #[must_use]
    pub fn row(&self, index: usize) -> Row<'_> {
        let first = index * self.width;
        let ends = &self.ends[first..first + self.width];
        let start = if first == 0 { 0 } else { self.ends[first - 1] };
        Row {
            texts: &self.texts,
            start,
            ends,
            numbers: self.numbers[index],
        }
    }

    /// The sum of all clicks.
    #[must_use]
    pub fn clicks(&self) -> u64 {
        self.numbers.iter().map(|numbers| numbers.clicks).sum()
    }

    /// The sum of all impressions.
    #[must_use]
    pub fn impressions(&self) -> u64 {
        self.numbers.iter().map(|numbers| numbers.impressions).sum()
    }

    /// The hash over keys, clicks, impressions and position of every row, and their number.
    #[must_use]
    pub fn content_hash(&self) -> ContentHash {
        let mut scratch = Vec::with_capacity(256);
        let mut sum = self.len() as u128;
        for row in self.iter() {
            row.write_identity(&mut scratch);
            sum = sum.wrapping_add(xxh3_128(&scratch));
        }
        ContentHash(sum)
    }
}

/// One row, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    texts: &'a str,
    start: u32,
    ends: &'a [u32],
    /// Clicks, impressions, position.
    pub numbers: Numbers,
}

impl<'a> Row<'a> {
    /// The keys, in the order of the dimensions.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let (texts, mut start) = (self.texts, self.start);
        self.ends.iter().map(move |end| {
            let key = &texts[start as usize..*end as usize];
            start = *end;
            key
        })
    }

    /// Everything that makes this row differ from another; lengths keep ("a", "bc") and ("ab", "c") apart.
    fn write_identity(&self, out: &mut Vec<u8>) {
        out.clear();
        for end in self.ends {
            out.extend_from_slice(&(end - self.start).to_le_bytes());
        }
        out.extend_from_slice(self.key_bytes());
        out.extend_from_slice(&self.numbers.clicks.to_le_bytes());
        out.extend_from_slice(&self.numbers.impressions.to_le_bytes());
        // No average position is a NaN, so its bits can stand for "none".
        let position = self.numbers.position.unwrap_or(f64::NAN);
        out.extend_from_slice(&position.to_bits().to_le_bytes());
    }

    fn key_bytes(&self) -> &'a [u8] {
        let end = self.ends.last().copied().unwrap_or(self.start);
        &self.texts.as_bytes()[self.start as usize..end as usize]
    }

    fn has_same_keys(&self, other: &Row<'_>) -> bool {
        self.key_bytes() == other.key_bytes() && self.keys().eq(other.keys())
    }
}

/// Finds keys that a slice holds twice: a sign that the day changed between two pages.
#[derive(Debug, Default)]
pub(super) struct KeyIndex {
    rows: HashMap<u64, u32, BuildHasherDefault<AlreadyHashed>>,
    checked: usize,
}

impl KeyIndex {
    /// Looks at the rows that were added since the last call; how many of them repeat an earlier key.
    pub(super) fn count_repeated(&mut self, rows: &SliceRows) -> usize {
        let mut repeated = 0;
        self.rows.reserve(rows.len() - self.checked);
        for index in self.checked..rows.len() {
            let row = rows.row(index);
            let hash = xxh3_64(row.key_bytes());
            // Offsets are 32 bits of text, so there are never more rows than that.
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            let earlier = *self.rows.entry(hash).or_insert(number);
            if earlier != number && rows.row(earlier as usize).has_same_keys(&row) {
                repeated += 1;
            }
        }
        self.checked = rows.len();
        repeated
    }
}

/// Passes a hash through instead of hashing it again.
#[derive(Debug, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Numbers = Numbers {
        clicks: 1,
        impressions: 2,
        position: Some(3.5),
    };

    fn rows(keys: &[[&str; 2]]) -> SliceRows {
        let mut rows = SliceRows::new(2);
        for pair in keys {
            rows.push(pair, ONE).unwrap();
        }
        rows
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        let rows = rows(&[["a", "bc"], ["", "ä"], ["x\0y", "007"]]);
        let keys: Vec<Vec<&str>> = rows.iter().map(|row| row.keys().collect()).collect();
        assert_eq!(keys, [["a", "bc"], ["", "ä"], ["x\u{fffd}y", "007"]]);
        assert_eq!((rows.clicks(), rows.impressions()), (3, 6));
    }

    #[test]
    fn the_hash_ignores_order_and_nothing_else() {
        let base = rows(&[["a", "b"], ["c", "d"]]).content_hash();
        assert_eq!(rows(&[["c", "d"], ["a", "b"]]).content_hash(), base);
        assert_ne!(rows(&[["a", "b"]]).content_hash(), base);
        assert_ne!(rows(&[["ab", ""], ["c", "d"]]).content_hash(), base);
        assert_ne!(
            rows(&[["a", "b"], ["c", "d"], ["c", "d"]]).content_hash(),
            base
        );
        let mut other = rows(&[["a", "b"]]);
        other
            .push(
                &["c", "d"],
                Numbers {
                    position: None,
                    ..ONE
                },
            )
            .unwrap();
        assert_ne!(other.content_hash(), base);
    }

    #[test]
    fn repeated_keys_are_counted_across_pages() {
        let mut index = KeyIndex::default();
        let mut rows = rows(&[["a", "b"], ["ab", ""], ["", "ab"]]);
        assert_eq!(index.count_repeated(&rows), 0);
        rows.push(&["a", "b"], ONE).unwrap();
        rows.push(&["new", ""], ONE).unwrap();
        assert_eq!(index.count_repeated(&rows), 1);
    }

    #[test]
    fn an_unfinished_row_can_be_dropped() {
        let mut rows = rows(&[["a", "b"]]);
        rows.push_key("half").unwrap();
        rows.truncate(1);
        rows.push(&["c", "d"], ONE).unwrap();
        assert_eq!(rows.row(1).keys().collect::<Vec<_>>(), ["c", "d"]);
        assert_eq!(
            rows.push(&["only one"], ONE),
            Err(RowError::Keys {
                expected: 2,
                found: 1
            })
        );
    }
}
