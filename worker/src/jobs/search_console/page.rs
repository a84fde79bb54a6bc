//! Reads one answer of `searchanalytics.query` straight into [`SliceRows`], without a value tree between.
//!
//! Tolerant where Google is loose: `rows`, `position` and `metadata` may be missing or null, whole
//! numbers may be written `3` or `3.0`, metadata comes in `snake_case` or `camelCase`, unknown fields are
//! skipped. Strict where looseness would change data: keys are strings and stay strings.

use std::fmt;

use jiff::civil::Date;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::slice_rows::{Numbers, SliceRows};

/// What an answer says beside its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// How many rows it had.
    pub(super) rows: usize,
    /// `byPage` or `byProperty`.
    pub(super) aggregation: Option<String>,
    /// The first day that Google calls incomplete.
    pub(super) first_incomplete: Option<Date>,
}

/// Adds the rows of an answer; when it cannot be read, `rows` is as it was.
pub(super) fn read(body: &[u8], rows: &mut SliceRows) -> Result<Page, serde_json::Error> {
    let before = rows.len();
    let mut json = serde_json::Deserializer::from_slice(body);
    let page = PageSeed(rows)
        .deserialize(&mut json)
        .and_then(|page| json.end().map(|()| page));
    match page {
        Ok(page) => Ok(Page {
            rows: rows.len() - before,
            ..page
        }),
        Err(error) => {
            rows.truncate(before);
            Err(error)
        }
    }
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default, alias = "firstIncompleteDate")]
    first_incomplete_date: Option<Date>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    Rows,
    ResponseAggregationType,
    Metadata,
    #[serde(other)]
    Other,
}

struct PageSeed<'r>(&'r mut SliceRows);

impl<'de> DeserializeSeed<'de> for PageSeed<'_> {
    type Value = Page;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Page, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageSeed<'_> {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer of searchanalytics.query")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        let mut page = Page::default();
        while let Some(field) = map.next_key()? {
            match field {
                Field::Rows => map.next_value_seed(RowsSeed(self.0))?,
                Field::ResponseAggregationType => page.aggregation = map.next_value()?,
                Field::Metadata => {
                    let metadata: Option<Metadata> = map.next_value()?;
                    page.first_incomplete = metadata.and_then(|m| m.first_incomplete_date);
                }
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(page)
    }
}

struct RowsSeed<'r>(&'r mut SliceRows);

impl<'de> DeserializeSeed<'de> for RowsSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for RowsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(RowSeed(self.0))?.is_some() {}
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum RowField {
    Keys,
    Clicks,
    Impressions,
    Position,
    #[serde(other)]
    Other,
}

struct RowSeed<'r>(&'r mut SliceRows);

impl<'de> DeserializeSeed<'de> for RowSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut numbers = Numbers {
            clicks: 0,
            impressions: 0,
            position: None,
        };
        while let Some(field) = map.next_key()? {
            match field {
                RowField::Keys => map.next_value_seed(KeysSeed(self.0))?,
                RowField::Clicks => numbers.clicks = map.next_value::<WholeNumber>()?.0,
                RowField::Impressions => numbers.impressions = map.next_value::<WholeNumber>()?.0,
                RowField::Position => numbers.position = map.next_value()?,
                RowField::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        self.0.finish_row(numbers).map_err(de::Error::custom)
    }
}

struct KeysSeed<'r>(&'r mut SliceRows);

impl<'de> DeserializeSeed<'de> for KeysSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for KeysSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of keys")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(KeySeed(self.0))?.is_some() {}
        Ok(())
    }
}

struct KeySeed<'r>(&'r mut SliceRows);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key, which is a string")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<(), E> {
        self.0.push_key(key).map_err(E::custom)
    }
}

/// A count that may be written as `3` or `3.0`.
struct WholeNumber(u64);

impl<'de> Deserialize<'de> for WholeNumber {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(WholeNumberVisitor)
    }
}

struct WholeNumberVisitor;

impl Visitor<'_> for WholeNumberVisitor {
    type Value = WholeNumber;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_u64<E>(self, number: u64) -> Result<WholeNumber, E> {
        Ok(WholeNumber(number))
    }

    // The range is checked: every whole f64 up to 2^53 is exactly one u64.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<WholeNumber, E> {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if number.fract() == 0.0 && (0.0..=EXACT).contains(&number) {
            Ok(WholeNumber(number as u64))
        } else {
            Err(E::invalid_value(de::Unexpected::Float(number), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(width: usize, json: &str) -> Result<(Page, SliceRows), serde_json::Error> {
        let mut rows = SliceRows::new(width);
        read(json.as_bytes(), &mut rows).map(|page| (page, rows))
    }

    #[test]
    fn rows_are_read_with_their_oddities() {
        let json = r#"{"rows":[
            {"keys":["007","usa"],"clicks":3,"impressions":41,"ctr":0.0731,"position":7.2},
            {"position":null,"impressions":2.0,"clicks":0.0,"keys":["nu\u006c\"l","ÄÖ \ud83d\ude00"],"later":[1]},
            {"keys":["",""],"clicks":1}],
            "responseAggregationType":"byPage","kind":"x"}"#;
        let (page, rows) = decode(2, json).unwrap();
        assert_eq!(
            (page.rows, page.aggregation.as_deref()),
            (3, Some("byPage"))
        );
        let keys: Vec<Vec<&str>> = rows.iter().map(|row| row.keys().collect()).collect();
        assert_eq!(keys, [["007", "usa"], ["nul\"l", "ÄÖ 😀"], ["", ""]]);
        assert_eq!(rows.row(0).numbers.position, Some(7.2));
        assert_eq!(
            rows.row(1).numbers,
            Numbers {
                clicks: 0,
                impressions: 2,
                position: None
            }
        );
    }

    #[test]
    fn missing_rows_and_both_spellings_of_metadata() {
        for empty in ["{}", r#"{"rows":null}"#, r#"{"rows":[],"metadata":null}"#] {
            assert_eq!(decode(1, empty).unwrap().0, Page::default(), "{empty}");
        }
        for name in ["first_incomplete_date", "firstIncompleteDate"] {
            let json =
                format!(r#"{{"metadata":{{"{name}":"2026-02-27","first_incomplete_hour":"x"}}}}"#);
            let (page, _) = decode(1, &json).unwrap();
            assert_eq!(page.first_incomplete, Some(jiff::civil::date(2026, 2, 27)));
        }
    }

    #[test]
    fn what_cannot_be_read_leaves_the_rows_as_they_were() {
        let mut rows = SliceRows::new(1);
        rows.push(
            &["kept"],
            Numbers {
                clicks: 1,
                impressions: 1,
                position: None,
            },
        )
        .unwrap();
        for bad in [
            r#"{"rows":[{"keys":["a"],"clicks":1},{"keys":["b"],"cli"#,
            r#"{"rows":[{"keys":["a","b"]}]}"#,
            r#"{"rows":[{"clicks":1}]}"#,
            r#"{"rows":[{"keys":[7]}]}"#,
            r#"{"rows":[{"keys":["a"],"clicks":1.5}]}"#,
            r#"{"rows":[{"keys":["a"],"clicks":-1}]}"#,
            r#"{"rows":[]}<html>"#,
            "<html>502</html>",
            "",
        ] {
            assert!(read(bad.as_bytes(), &mut rows).is_err(), "{bad}");
            assert_eq!(rows.len(), 1);
        }
        rows.push(
            &["next"],
            Numbers {
                clicks: 1,
                impressions: 1,
                position: None,
            },
        )
        .unwrap();
        assert_eq!(rows.row(1).keys().collect::<Vec<_>>(), ["next"]);
    }
}
