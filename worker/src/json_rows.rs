//! Rows as JSON documents, one behind the other in one text: a row costs its bytes and a number, and thousands of
//! them are two pieces of memory.

use std::ops::Index;

use serde_json::value::RawValue;
use shared::payload::{JsonError, check_json};

/// JSON documents, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JsonRows {
    text: String,
    /// Where each document ends in the text, and the next begins.
    ends: Vec<usize>,
}

impl JsonRows {
    /// None.
    pub const NONE: Self = Self {
        text: String::new(),
        ends: Vec::new(),
    };

    /// Adds a row, if it is JSON that can be stored.
    pub fn push(&mut self, row: &str) -> Result<(), JsonError> {
        check_json(row)?;
        self.add(row);
        Ok(())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All of them, in order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(move |index| &self[index])
    }

    /// About how much memory they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len() + self.ends.len() * size_of::<usize>()
    }

    /// There will be no more of them: what was kept free for more is given back.
    #[must_use]
    pub fn complete(mut self) -> Self {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
        self
    }

    /// Adds a row that somebody else has checked.
    pub(crate) fn add(&mut self, row: &str) {
        self.text.push_str(row);
        self.ends.push(self.text.len());
    }
}

impl Index<usize> for JsonRows {
    type Output = str;

    fn index(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[index]]
    }
}

/// Of documents that are JSON, and that nobody has looked into otherwise: a sink may refuse them.
impl FromIterator<Box<RawValue>> for JsonRows {
    fn from_iter<I: IntoIterator<Item = Box<RawValue>>>(documents: I) -> Self {
        let mut rows = Self::default();
        for document in documents {
            rows.add(document.get());
        }
        rows.complete()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_found_again() {
        let mut rows = JsonRows::default();
        assert!(rows.is_empty());
        for row in ["1", "{\"a\": \"ä\"}", "[]"] {
            rows.push(row).unwrap();
        }
        assert_eq!(rows.push("\"\\u0000\""), Err(JsonError::Nul));
        assert!(rows.push("1 2").is_err());
        let rows = rows.complete();
        assert_eq!((rows.len(), rows.bytes()), (3, 14 + 3 * 8));
        assert!(rows.iter().eq(["1", "{\"a\": \"ä\"}", "[]"]));
        assert_eq!(&rows[2], "[]");
        let documents = rows.iter().map(|row| RawValue::from_string(row.to_owned()));
        assert_eq!(documents.collect::<Result<JsonRows, _>>().unwrap(), rows);
    }
}
