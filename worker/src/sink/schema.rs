//! The tables of a dimension set, made when the set is first used: which sets there are is the user's
//! choice. Every identifier comes from the closed list of dimensions.
//!
//! Rows are stored narrow, with the number of their slice; the pinned name is a view that adds site, type
//! and date from the slice and derives `ctr`.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use shared::search_console::{Dimension, DimensionSet};

/// Columns of keys; the day is the slice's own.
fn key_columns(set: &DimensionSet) -> Vec<&'static str> {
    set.dimensions()
        .iter()
        .filter(|d| **d != Dimension::Date)
        .map(|d| d.as_str())
        .collect()
}

fn each_key(set: &DimensionSet, write: impl Fn(&'static str) -> String) -> String {
    let written: Vec<String> = key_columns(set).into_iter().map(write).collect();
    written.concat()
}

/// The table of a set's rows: `search_analytics_rows_page_query`.
pub(super) fn rows_table(set: &DimensionSet) -> String {
    set.table()
        .replacen("search_analytics_", "search_analytics_rows_", 1)
}

/// The columns of [`rows_table`] in the order in which rows are loaded: fixed widths first, so that
/// PostgreSQL pads nothing.
pub(super) fn load_columns(set: &DimensionSet) -> Vec<&'static str> {
    let mut columns = vec!["clicks", "impressions", "position", "slice"];
    columns.extend(key_columns(set));
    columns
}

fn view(set: &DimensionSet, create: &str, ratio: &str) -> String {
    let keys = each_key(set, |key| format!("r.{key}, "));
    format!(
        "{create} {} AS SELECT s.site_url, s.search_type, s.date, {keys}r.clicks, r.impressions, \
         CASE WHEN r.impressions > 0 THEN {ratio} ELSE 0.0 END AS ctr, r.position \
         FROM {} r JOIN search_analytics_slices s ON s.slice = r.slice",
        set.table(),
        rows_table(set),
    )
}

pub(super) fn sqlite(set: &DimensionSet) -> [String; 2] {
    let keys = each_key(set, |key| format!("{key} TEXT NOT NULL, "));
    let table = format!(
        "CREATE TABLE IF NOT EXISTS {} (slice INTEGER NOT NULL, n INTEGER NOT NULL, {keys}\
         clicks INTEGER NOT NULL, impressions INTEGER NOT NULL, position REAL, \
         PRIMARY KEY (slice, n)) STRICT, WITHOUT ROWID",
        rows_table(set),
    );
    [
        table,
        view(
            set,
            "CREATE VIEW IF NOT EXISTS",
            "CAST(r.clicks AS REAL) / r.impressions",
        ),
    ]
}

pub(super) fn postgres(set: &DimensionSet) -> [String; 3] {
    let keys = each_key(set, |key| format!(", {key} text NOT NULL"));
    let rows = rows_table(set);
    let table = format!(
        "CREATE TABLE IF NOT EXISTS {rows} (clicks bigint NOT NULL, impressions bigint NOT NULL, \
         position float8, slice integer NOT NULL{keys})",
    );
    // A slice's rows lie together, so block ranges find them: a b-tree entry for each row cost a third of
    // the loading rate (`benches/slice_path.rs`). `minmax_multi` keeps several slices of a range apart, which
    // plain minmax would not once replaced slices fill gaps. PostgreSQL 14 or later.
    let index = format!(
        "CREATE INDEX IF NOT EXISTS {rows}_slice ON {rows} USING brin (slice int4_minmax_multi_ops) \
         WITH (pages_per_range = 32, autosummarize = on)"
    );
    [
        table,
        index,
        view(
            set,
            "CREATE OR REPLACE VIEW",
            "r.clicks::float8 / r.impressions",
        ),
    ]
}

/// The sets whose tables this process has seen to.
#[derive(Debug, Default)]
pub(super) struct KnownSets(Mutex<HashSet<DimensionSet>>);

impl KnownSets {
    pub(super) fn contains(&self, set: &DimensionSet) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(set)
    }

    pub(super) fn add(&self, set: &DimensionSet) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(set.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_name_is_a_view_with_the_pinned_columns() {
        let set: DimensionSet = "page,query".parse().unwrap();
        let [_, _, view] = postgres(&set);
        assert!(view.starts_with(
            "CREATE OR REPLACE VIEW search_analytics_page_query AS SELECT s.site_url, s.search_type, s.date, \
             r.page, r.query, r.clicks, r.impressions, CASE"
        ));
        assert_eq!(rows_table(&set), "search_analytics_rows_page_query");
    }

    #[test]
    fn the_set_of_the_day_has_no_second_date() {
        let set: DimensionSet = "date".parse().unwrap();
        assert_eq!(
            load_columns(&set),
            ["clicks", "impressions", "position", "slice"]
        );
        let [table, _] = sqlite(&set);
        assert!(!table.contains("date TEXT"));
    }
}
