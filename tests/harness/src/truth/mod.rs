//! Compares what a sink holds with what the emulator would serve, slice by slice and row by row.
//!
//! What ought to be there is computed from the wish (properties, types, dimension sets, days), never from
//! the sink, so that a forgotten slice is found.

mod expected;
mod sink;
pub mod summary;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::civil::Date;
use serde::Serialize;
use shared::search_console::{DimensionSet, SearchType};

pub use expected::{Wish, last_final_day};
pub use sink::{PropertyRecord, Sink, SliceRecord, StoredRow};

use crate::emulator::{Admin, TrueRow};

/// Slices that are compared at once.
const AT_ONCE: usize = 4;
/// Ratios that differ less than this are equal: both sides divide the same two integers.
const RATIO_TOLERANCE: f64 = 1e-9;

/// One slice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Slice {
    /// The property.
    pub property: String,
    /// The search type.
    #[serde(rename = "type")]
    pub search_type: SearchType,
    /// What its rows are grouped by.
    pub dimensions: DimensionSet,
    /// The Pacific day.
    pub date: Date,
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} [{}] {}",
            self.property, self.search_type, self.dimensions, self.date
        )
    }
}

/// A slice that is not as it ought to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mismatch {
    /// Which slice.
    pub slice: Slice,
    /// What is wrong with it.
    pub problem: String,
}

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Slices that were compared.
    pub slices: u64,
    /// Of these, those that have rows.
    pub slices_with_rows: u64,
    /// Rows that ought to be there.
    pub rows: u64,
    /// Slices that are wrong.
    pub mismatches: Vec<Mismatch>,
}

impl Report {
    /// Everything is as it ought to be, and there was something to compare.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.mismatches.is_empty() && self.rows > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        writeln!(
            f,
            "compared {} slices ({} with rows) and {} rows: {} slices differ",
            self.slices,
            self.slices_with_rows,
            self.rows,
            self.mismatches.len()
        )?;
        for mismatch in self.mismatches.iter().take(SHOWN) {
            writeln!(f, "  {}: {}", mismatch.slice, mismatch.problem)?;
        }
        if self.mismatches.len() > SHOWN {
            writeln!(f, "  … and {} more", self.mismatches.len() - SHOWN)?;
        }
        Ok(())
    }
}

/// Compares every slice of the wish.
pub async fn compare(sink: &Sink, emulator: &Admin, wish: &Wish) -> Result<Report> {
    let records = sink.slices().await?;
    let compared = stream::iter(wish.slices())
        .map(|slice| compare_slice(sink, emulator, &records, slice))
        .buffer_unordered(AT_ONCE);
    let mut report = Report::default();
    let mut compared = std::pin::pin!(compared);
    while let Some((rows, mismatch)) = compared.try_next().await? {
        report.slices += 1;
        report.slices_with_rows += u64::from(rows > 0);
        report.rows += rows;
        report.mismatches.extend(mismatch);
    }
    report.mismatches.sort_by(|a, b| a.slice.cmp(&b.slice));
    Ok(report)
}

async fn compare_slice(
    sink: &Sink,
    emulator: &Admin,
    records: &BTreeMap<Slice, SliceRecord>,
    slice: Slice,
) -> Result<(u64, Option<Mismatch>)> {
    let truth = emulator
        .truth(
            &slice.property,
            slice.search_type,
            &slice.dimensions,
            slice.date,
        )
        .await?;
    let stored = sink.rows(&slice).await?;
    let rows = truth.len() as u64;
    let problem = rows_problem(&truth, stored, &slice.dimensions)
        .or_else(|| record_problem(&truth, records.get(&slice)));
    Ok((rows, problem.map(|problem| Mismatch { slice, problem })))
}

/// The slice's own record has to say the same as its rows.
fn record_problem(truth: &[TrueRow], record: Option<&SliceRecord>) -> Option<String> {
    let Some(record) = record else {
        let missing = || "has no record in search_analytics_slices".to_owned();
        return (!truth.is_empty()).then(missing);
    };
    let clicks: u64 = truth.iter().map(|row| row.clicks).sum();
    if record.error.is_some() {
        return Some(format!("has the error {:?}", record.error));
    }
    let expected = (truth.len() as u64, clicks);
    let differs = (record.rows, record.clicks) != expected;
    differs.then(|| {
        format!(
            "its record says {} rows and {} clicks, true are {expected:?}",
            record.rows, record.clicks
        )
    })
}

fn rows_problem(
    truth: &[TrueRow],
    stored: Vec<StoredRow>,
    dimensions: &DimensionSet,
) -> Option<String> {
    let mut by_keys = BTreeMap::new();
    for row in stored {
        if let Some(twice) = by_keys.insert(row.keys.clone(), row) {
            return Some(format!("{:?} is stored twice", twice.keys));
        }
    }
    for row in truth {
        // The date is a column of every table, so it is no key there.
        let keys = if dimensions.to_string() == "date" {
            Vec::new()
        } else {
            row.keys.clone()
        };
        match by_keys.remove(&keys) {
            None => return Some(format!("{keys:?} is missing, of {} rows", truth.len())),
            Some(stored) if !equal(row, &stored) => {
                return Some(format!("{keys:?} is {stored:?}, true is {row:?}"));
            }
            Some(_) => {}
        }
    }
    let ghost = by_keys.keys().next()?;
    Some(format!(
        "{ghost:?} and {} more are stored and not true",
        by_keys.len() - 1
    ))
}

fn equal(truth: &TrueRow, stored: &StoredRow) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= RATIO_TOLERANCE;
    let same_position = match (truth.position, stored.position) {
        (Some(a), Some(b)) => near(a, b),
        (a, b) => a == b,
    };
    (truth.clicks, truth.impressions) == (stored.clicks, stored.impressions)
        && near(truth.ctr, stored.ctr)
        && same_position
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(keys: &[&str], clicks: u64) -> TrueRow {
        let keys = keys.iter().map(ToString::to_string).collect();
        TrueRow {
            keys,
            clicks,
            impressions: 10,
            ctr: 0.1,
            position: None,
        }
    }

    fn stored(keys: &[&str], clicks: u64) -> StoredRow {
        let keys = keys.iter().map(ToString::to_string).collect();
        StoredRow {
            keys,
            clicks,
            impressions: 10,
            ctr: 0.1,
            position: None,
        }
    }

    #[test]
    fn every_kind_of_difference_is_seen() {
        let page: DimensionSet = "page".parse().unwrap();
        let problem =
            |t: &[TrueRow], s: Vec<StoredRow>| rows_problem(t, s, &page).unwrap_or_default();
        let row = [truth(&["a"], 1)];
        assert_eq!(problem(&row, vec![stored(&["a"], 1)]), "");
        assert!(problem(&row, vec![]).contains("missing"));
        assert!(problem(&row, vec![stored(&["a"], 2)]).contains("true is"));
        assert!(problem(&row, vec![stored(&["a"], 1), stored(&["a"], 1)]).contains("twice"));
        assert!(problem(&row, vec![stored(&["a"], 1), stored(&["b"], 1)]).contains("not true"));
    }

    #[test]
    fn nothing_compared_is_not_good() {
        assert!(!Report::default().is_good());
    }
}
