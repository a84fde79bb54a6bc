//! Time: partial days, final days, and the revision after them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{ALPHA, Fixture, start};

const YOUNG_DAY: &str = "2026-02-26";

async fn by_query(fixture: &Fixture) -> BTreeMap<String, Value> {
    let body = json!({"startDate": YOUNG_DAY, "endDate": YOUNG_DAY, "dimensions": ["query"], "rowLimit": 25_000});
    let rows = fixture.rows(ALPHA, &body).await;
    rows.into_iter()
        .map(|row| {
            (
                row["keys"][0].as_str().unwrap().to_owned(),
                row["impressions"].clone(),
            )
        })
        .collect()
}

#[tokio::test]
async fn five_days_later_some_rows_changed_and_some_vanished() {
    let fixture = start().await;
    let before = by_query(&fixture).await;
    let url = fixture.url("/__emu/advance");
    let advanced: Value = fixture
        .client
        .post(url)
        .json(&json!({"seconds": 5 * 86_400}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(advanced["pacificDate"], "2026-03-06");
    let after = by_query(&fixture).await;
    let vanished = before
        .keys()
        .filter(|query| !after.contains_key(*query))
        .count();
    let changed = after
        .iter()
        .filter(|(query, impressions)| before.get(*query) != Some(*impressions))
        .count();
    assert!(
        vanished > 0 && changed > 0,
        "{vanished} vanished, {changed} changed"
    );
    let truth = fixture
        .truth(&format!("site={ALPHA}&date={YOUNG_DAY}&dims=query"))
        .await;
    assert_eq!(truth.len(), after.len());
    assert_eq!(fixture.emulator.stats().duplicates, 0);
}

#[tokio::test]
async fn a_final_day_appears_when_its_time_comes() {
    let fixture = start().await;
    let today = json!({"startDate": "2026-03-01", "endDate": "2026-03-01", "dimensions": ["date"]});
    assert!(fixture.rows(ALPHA, &today).await.is_empty());
    let set = |now: &str| {
        fixture
            .client
            .post(fixture.url("/__emu/clock"))
            .json(&json!({ "now": now }))
            .send()
    };
    // One second before Pacific midnight, and after it.
    set("2026-03-04T07:59:59Z")
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    assert!(fixture.rows(ALPHA, &today).await.is_empty());
    set("2026-03-04T08:00:00Z")
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    assert_eq!(fixture.rows(ALPHA, &today).await.len(), 1);
}

#[tokio::test]
async fn days_beyond_retention_are_gone() {
    let fixture = start().await;
    let first = "2024-10-31";
    let body = json!({"startDate": "2024-01-01", "endDate": "2026-03-01", "dimensions": ["date"], "rowLimit": 25_000});
    let rows = fixture.rows(ALPHA, &body).await;
    assert_eq!(rows[0]["keys"], json!([first]));
    assert_eq!(rows.len(), 486 - 2);
}
