//! The golden vectors of generator v1, and the promises that tests elsewhere lean on.

use std::collections::HashSet;
use std::fmt::Write as _;

use jiff::civil::{Date, date};
use jiff::{Timestamp, Zoned};
use sha2::{Digest, Sha256};

use super::{
    DataState, Dimension, EmptyRange, Filter, Options, Profile, RowSet, SearchType, Selection, rows,
};

const ALPHA: &str = "sc-domain:alpha.example";
const GOLDEN_DAY: Date = date(2026, 2, 10);
const LARGE_DIMENSIONS: [Dimension; 4] = [
    Dimension::Page,
    Dimension::Query,
    Dimension::Country,
    Dimension::Device,
];

fn at(timestamp: &str) -> Zoned {
    let timestamp: Timestamp = timestamp.parse().unwrap();
    timestamp.in_tz("America/Los_Angeles").unwrap()
}

fn default_now() -> Zoned {
    at("2026-03-01T18:00:00Z")
}

fn of_profile(profile: Profile) -> Options {
    Options {
        profile,
        ..Options::default()
    }
}

fn golden(profile: Profile, dimensions: &[Dimension]) -> RowSet {
    let selection = Selection::day(ALPHA, SearchType::Web, GOLDEN_DAY, dimensions);
    rows(&of_profile(profile), &selection, &default_now())
}

fn summary(set: &RowSet) -> (usize, u64, u64, String) {
    let mut text = String::new();
    for row in set.iter() {
        for key in &row.keys {
            write!(text, "{key}\t").unwrap();
        }
        writeln!(
            text,
            "{}\t{}\t{:.6}",
            row.clicks,
            row.impressions,
            row.position.unwrap_or(0.0)
        )
        .unwrap();
    }
    let digest = Sha256::digest(text);
    let head = digest
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let digest = format!("{head:016x}");
    (
        set.len(),
        sum(set, |row| row.clicks),
        sum(set, |row| row.impressions),
        digest,
    )
}

fn sum(set: &RowSet, value: impl Fn(&super::TruthRow) -> u64) -> u64 {
    set.iter().map(|row| value(&row)).sum()
}

#[test]
fn golden_vectors_are_met() {
    let date = golden(Profile::Small, &[Dimension::Date]);
    assert_eq!(summary(&date), (1, 150, 6645, "4efa285ef93c77b6".into()));
    let query = golden(Profile::Small, &[Dimension::Query]);
    assert_eq!(summary(&query), (452, 101, 4968, "92f2278c94c90c67".into()));
    let large = golden(Profile::Large, &LARGE_DIMENSIONS);
    assert_eq!(
        summary(&large),
        (50_000, 6098, 338_365, "3e8a801c88d75747".into())
    );
}

#[test]
fn the_cap_can_be_lifted() {
    let options = Options {
        row_cap: usize::MAX,
        ..of_profile(Profile::Large)
    };
    let selection = Selection::day(ALPHA, SearchType::Web, GOLDEN_DAY, &LARGE_DIMENSIONS);
    assert!(rows(&options, &selection, &default_now()).len() > 50_000);
}

#[test]
fn clicks_by_page_equal_the_total_of_the_day() {
    let total = golden(Profile::Small, &[Dimension::Date]);
    let by_page = golden(Profile::Small, &[Dimension::Page]);
    assert_eq!(
        sum(&by_page, |row| row.clicks),
        sum(&total, |row| row.clicks)
    );
    assert!(sum(&by_page, |row| row.impressions) > sum(&total, |row| row.impressions));
}

#[test]
fn hours_of_a_day_add_up_to_the_day() {
    for (day, now) in [
        ("2026-02-27", "2026-03-01T18:00:00Z"),
        ("2026-03-08", "2026-03-11T18:00:00Z"),
    ] {
        let day: Date = day.parse().unwrap();
        let select = |dimension| Selection {
            data_state: DataState::HourlyAll,
            ..Selection::day(ALPHA, SearchType::Web, day, &[dimension])
        };
        let hours = rows(&Options::default(), &select(Dimension::Hour), &at(now));
        let total = rows(&Options::default(), &select(Dimension::Date), &at(now));
        assert_eq!(sum(&hours, |row| row.clicks), sum(&total, |row| row.clicks));
        let distinct: HashSet<String> = hours.iter().flat_map(|row| row.keys).collect();
        // Summer time begins on 8 March 2026: that day has 23 hours, each with its own offset.
        assert_eq!(distinct.len(), hours.len());
        assert_eq!(
            distinct.contains("2026-03-08T03:00:00-07:00"),
            day == date(2026, 3, 8)
        );
        assert!(!distinct.contains("2026-03-08T02:00:00-08:00"));
    }
}

#[test]
fn a_day_is_partial_then_final_then_revised() {
    let day = date(2026, 2, 27);
    let at_age = |age: i8, data_state| {
        let now = at("2026-02-27T20:00:00Z")
            .checked_add(jiff::Span::new().days(age))
            .unwrap();
        let by_query = Selection::day(ALPHA, SearchType::Web, day, &[Dimension::Query]);
        rows(
            &Options::default(),
            &Selection {
                data_state,
                ..by_query
            },
            &now,
        )
    };
    assert_eq!(at_age(2, DataState::Final).len(), 0);
    let keys = |set: &RowSet| -> HashSet<Vec<String>> { set.iter().map(|row| row.keys).collect() };
    let fresh = at_age(0, DataState::All);
    let first_final = at_age(3, DataState::Final);
    let revised = at_age(5, DataState::Final);
    assert!(fresh.len() < first_final.len());
    assert_eq!(summary(&first_final), summary(&at_age(4, DataState::Final)));
    assert_ne!(summary(&first_final), summary(&revised));
    assert_eq!(summary(&revised), summary(&at_age(90, DataState::Final)));
    assert!(keys(&revised).is_subset(&keys(&first_final)) && keys(&revised) != keys(&first_final));
}

#[test]
fn several_days_are_served_in_date_order_or_added_up() {
    let range = |dimensions: &[Dimension]| Selection {
        start: date(2026, 2, 1),
        ..Selection::day(ALPHA, SearchType::Web, GOLDEN_DAY, dimensions)
    };
    let set =
        |dimensions: &[Dimension]| rows(&Options::default(), &range(dimensions), &default_now());
    let dated: Vec<String> = set(&[Dimension::Country, Dimension::Date])
        .iter()
        .map(|row| row.keys[1].clone())
        .collect();
    assert!(dated.is_sorted());
    assert_eq!(dated.first().map(String::as_str), Some("2026-02-01"));
    assert_eq!(set(&[Dimension::Date]).len(), 10);
    let total = set(&[]);
    assert_eq!(total.len(), 1);
    assert_eq!(
        sum(&total, |row| row.clicks),
        sum(&set(&[Dimension::Date]), |row| row.clicks)
    );
    assert_eq!(
        sum(&total, |row| row.clicks),
        sum(&set(&[Dimension::Device]), |row| row.clicks)
    );
}

#[test]
fn filters_cut_what_grouping_shows() {
    let by_country = golden(Profile::Small, &[Dimension::Country]);
    let germany = by_country.iter().find(|row| row.keys == ["deu"]).unwrap();
    let filters = vec![Filter::parse(Dimension::Country, "equals", "DEU").unwrap()];
    let by_day = Selection::day(ALPHA, SearchType::Web, GOLDEN_DAY, &[]);
    let filtered = rows(
        &Options::default(),
        &Selection { filters, ..by_day },
        &default_now(),
    );
    assert_eq!(
        filtered.iter().next().map(|row| row.clicks),
        Some(germany.clicks)
    );
}

#[test]
fn days_can_be_empty() {
    let empty = vec![EmptyRange {
        site: None,
        from: GOLDEN_DAY,
        to: GOLDEN_DAY,
    }];
    let options = Options {
        empty,
        ..Options::default()
    };
    let selection = Selection::day(ALPHA, SearchType::Web, GOLDEN_DAY, &[Dimension::Date]);
    assert!(rows(&options, &selection, &default_now()).is_empty());
}

#[test]
fn delta_has_no_news_and_the_default_sites_do() {
    let count = |site| {
        let selection = Selection::day(site, SearchType::News, GOLDEN_DAY, &[Dimension::Date]);
        rows(&Options::default(), &selection, &default_now()).len()
    };
    assert_eq!(count("https://delta.example/"), 0);
    assert_eq!(count(ALPHA), 1);
}

#[test]
fn nasty_texts_change_neither_counts_nor_uniqueness() {
    let nasty = Options {
        nasty_text: true,
        ..Options::default()
    };
    let selection = Selection::day(
        ALPHA,
        SearchType::Web,
        GOLDEN_DAY,
        &[Dimension::Query, Dimension::Page],
    );
    let plain = rows(&Options::default(), &selection, &default_now());
    let odd = rows(&nasty, &selection, &default_now());
    assert_eq!(
        (odd.len(), sum(&odd, |r| r.clicks)),
        (plain.len(), sum(&plain, |r| r.clicks))
    );
    let distinct: HashSet<Vec<String>> = odd.iter().map(|row| row.keys).collect();
    assert_eq!(distinct.len(), odd.len());
}
