//! The default sink, on SQLite and on PostgreSQL: rows of any job in `results`, slices of Search Analytics in tables of
//! their own, and what is noted of properties.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::date;
use shared::id::BatchId;
use shared::outcome::Completed;
use shared::search_console::SearchType;
use worker::handler::Rows;
use worker::jobs::search_console::slice_rows::{Numbers, Slice, SliceId, SliceRows};
use worker::jobs::search_console::store::PropertyState;
use worker::sink::{Committed, SinkError};

use super::{commit_together, count, json, marker, on, race, refused_of_50};
use crate::support::database::{Ground, Kind};

on! {
    sqlite: Sqlite Results;
    postgres: Postgres Results;
    => {
        the_first_of_two_writers_of_a_slice_wins
        one_refused_batch_leaves_its_neighbours_alone
        json_rows_come_back_as_they_went_in
        a_slice_is_replaced_whole
        an_unchanged_slice_writes_no_rows
        an_empty_slice_is_known
        odd_texts_survive
        the_set_of_the_day_has_one_date
        sets_in_another_order_have_tables_of_their_own
        slices_may_be_the_first_of_their_set_together
        properties_and_slices_are_noted
        a_slice_makes_its_property_active_unless_a_quota_holds
    }
}

const SITE: &str = "sc-domain:alpha.example";

fn whole(slice: Slice) -> Arc<Rows> {
    Arc::new(Rows::Slice(Box::new(slice)))
}

fn slice(set: &str, keys: &[&[&str]], clicks: u64) -> Slice {
    let dimensions: shared::search_console::DimensionSet = set.parse().unwrap();
    let mut rows = SliceRows::new(dimensions.dimensions().len());
    for (n, keys) in (0..).zip(keys) {
        let position = (n % 2 == 0).then_some(1.5);
        rows.push(
            keys,
            Numbers {
                clicks,
                impressions: 4 * clicks,
                position,
            },
        )
        .unwrap();
    }
    Slice {
        id: SliceId {
            property: SITE.into(),
            search_type: SearchType::Web,
            dimensions,
            date: date(2026, 2, 10),
        },
        rows,
        is_final: true,
        truncated: false,
        aggregation: Some("byPage".into()),
        api_calls: 2,
        remark: None,
        fetched_at: Timestamp::now(),
    }
}

async fn store_slice(ground: &Ground, slice: Slice) -> Completed {
    let committed = ground
        .sink
        .commit(marker(BatchId::generate(), 1), whole(slice))
        .await;
    match committed.unwrap() {
        Committed::Now(completed) => completed,
        Committed::Before(_) => panic!("a new batch was committed before"),
    }
}

async fn the_first_of_two_writers_of_a_slice_wins(ground: Ground) {
    race(&ground, || whole(slice("page", &[&["a"], &["b"]], 1))).await;
    assert_eq!(
        ground.rows("count(*)", "FROM search_analytics_page").await,
        ["2"]
    );
    assert_eq!(
        ground.rows("version", "FROM search_analytics_slices").await,
        ["1"]
    );
}

async fn one_refused_batch_leaves_its_neighbours_alone(ground: Ground) {
    let refused = refused_of_50(&ground, |n| match n {
        // No database has a number for that.
        20 => whole(slice("page", &[&["a"]], u64::MAX / 5)),
        _ => json(&["1"]),
    })
    .await;
    assert!(
        matches!(refused[..], [SinkError::Refused(_)]),
        "{refused:?}"
    );
    assert_eq!(ground.rows("count(*)", "FROM results").await, ["49"]);
    assert_eq!(ground.rows("count(*)", "FROM batch_commits").await, ["49"]);
}

async fn json_rows_come_back_as_they_went_in(ground: Ground) {
    let texts = [
        r#"{"b":1,  "a":1.50}"#,
        r#""\\u0000 ä \ud83d\ude00""#,
        "null",
        "12345678901234567890.123",
    ];
    ground
        .sink
        .commit(marker(BatchId::generate(), 1), json(&texts))
        .await
        .unwrap();
    assert_eq!(
        ground.rows("json", "FROM results ORDER BY \"index\"").await,
        texts
    );
}

async fn a_slice_is_replaced_whole(ground: Ground) {
    let first = store_slice(
        &ground,
        slice("page,query", &[&["a", "x"], &["b", "y"], &["c", "z"]], 1),
    )
    .await;
    assert_eq!(count(&first, "rows_written"), 3);
    let other_day = Slice {
        id: SliceId {
            date: date(2026, 2, 11),
            ..slice("page,query", &[], 1).id
        },
        ..slice("page,query", &[&["a", "x"]], 9)
    };
    store_slice(&ground, other_day).await;
    store_slice(
        &ground,
        Slice {
            is_final: false,
            ..slice("page,query", &[&["c", "z"], &["d", ""]], 2)
        },
    )
    .await;
    assert_eq!(
        ground
            .rows(
                "site_url, search_type, date, page, query, clicks, impressions, ctr, position",
                "FROM search_analytics_page_query ORDER BY date, page"
            )
            .await,
        [
            "sc-domain:alpha.example\tweb\t2026-02-10\tc\tz\t2\t8\t0.25\t1.5",
            "sc-domain:alpha.example\tweb\t2026-02-10\td\t\t2\t8\t0.25\tNULL",
            "sc-domain:alpha.example\tweb\t2026-02-11\ta\tx\t9\t36\t0.25\t1.5",
        ]
    );
    assert_eq!(
        ground
            .rows(
                "date, state, rows, clicks, impressions, version, dimension_set",
                "FROM search_analytics_slices ORDER BY date"
            )
            .await,
        [
            "2026-02-10\tprovisional\t2\t4\t16\t2\tpage,query",
            "2026-02-11\tfinal\t1\t9\t36\t1\tpage,query"
        ]
    );
}

async fn an_unchanged_slice_writes_no_rows(ground: Ground) {
    let provisional = Slice {
        is_final: false,
        ..slice("query", &[&["a"], &["b"]], 1)
    };
    store_slice(&ground, provisional).await;
    let mut reordered = slice("query", &[], 1);
    reordered
        .rows
        .push(
            &["b"],
            Numbers {
                clicks: 1,
                impressions: 4,
                position: None,
            },
        )
        .unwrap();
    reordered
        .rows
        .push(
            &["a"],
            Numbers {
                clicks: 1,
                impressions: 4,
                position: Some(1.5),
            },
        )
        .unwrap();
    let again = store_slice(&ground, reordered).await;
    assert_eq!(
        (
            count(&again, "rows_written"),
            count(&again, "slices_unchanged")
        ),
        (0, 1)
    );
    assert_eq!(
        ground
            .rows("state, version, rows", "FROM search_analytics_slices")
            .await,
        ["final\t1\t2"]
    );
    assert_eq!(
        ground
            .rows("query", "FROM search_analytics_query ORDER BY query")
            .await,
        ["a", "b"]
    );
}

async fn an_empty_slice_is_known(ground: Ground) {
    store_slice(&ground, slice("page", &[&["a"]], 1)).await;
    store_slice(
        &ground,
        Slice {
            truncated: true,
            ..slice("page", &[], 1)
        },
    )
    .await;
    assert_eq!(
        ground.rows("count(*)", "FROM search_analytics_page").await,
        ["0"]
    );
    assert_eq!(
        ground
            .rows("rows, version, state", "FROM search_analytics_slices")
            .await,
        ["0\t2\ttruncated"]
    );
    let again = store_slice(&ground, slice("page", &[], 1)).await;
    assert_eq!(count(&again, "slices_unchanged"), 1);
}

async fn odd_texts_survive(ground: Ground) {
    let long = format!("https://x.example/{}", "ä".repeat(20_000));
    let texts = [
        "",
        "007",
        "null",
        "NULL",
        "1e5",
        "tab\there",
        "quote\"'",
        "back\\slash",
        "\u{202e}rtl",
        "😀",
        "A",
        "a",
        &long,
    ];
    let keys: Vec<Vec<&str>> = texts.iter().map(|text| vec![*text]).collect();
    let keys: Vec<&[&str]> = keys.iter().map(Vec::as_slice).collect();
    store_slice(&ground, slice("query", &keys, 1)).await;
    let mut stored = ground.rows("query", "FROM search_analytics_query").await;
    stored.sort();
    let mut expected = texts.map(str::to_owned);
    expected.sort();
    assert_eq!(stored, expected);
    store_slice(&ground, slice("query", &[&["nul\0here"]], 1)).await;
    assert_eq!(
        ground.rows("query", "FROM search_analytics_query").await,
        ["nul\u{fffd}here"]
    );
}

async fn the_set_of_the_day_has_one_date(ground: Ground) {
    store_slice(&ground, slice("date", &[&["2026-02-10"]], 3)).await;
    assert_eq!(
        ground
            .rows(
                "site_url, search_type, date, clicks, impressions, ctr, position",
                "FROM search_analytics_date"
            )
            .await,
        ["sc-domain:alpha.example\tweb\t2026-02-10\t3\t12\t0.25\t1.5"]
    );
}

async fn sets_in_another_order_have_tables_of_their_own(ground: Ground) {
    let all = "page,query,country,device";
    store_slice(&ground, slice(all, &[&["p", "q", "usa", "MOBILE"]], 1)).await;
    store_slice(&ground, slice("device,country", &[&["MOBILE", "usa"]], 1)).await;
    let columns = "page, query, country, device";
    assert_eq!(
        ground
            .rows(columns, "FROM search_analytics_page_query_country_device")
            .await,
        ["p\tq\tusa\tMOBILE"]
    );
    assert_eq!(
        ground
            .rows("country, device", "FROM search_analytics_device_country")
            .await,
        ["usa\tMOBILE"]
    );
}

async fn slices_may_be_the_first_of_their_set_together(ground: Ground) {
    commit_together(&ground, || whole(slice("country", &[&["usa"]], 1))).await;
}

async fn properties_and_slices_are_noted(ground: Ground) {
    assert_eq!(ground.store.property(SITE).await.unwrap(), None);
    let until: Timestamp = "2026-03-02T08:00:00Z".parse().unwrap();
    let states = [
        PropertyState::PermissionLost {
            detail: "no".into(),
        },
        PropertyState::ReauthRequired {
            detail: "log in".into(),
        },
        PropertyState::QuotaLimited {
            until,
            detail: "daily".into(),
        },
        PropertyState::Active,
    ];
    for state in states {
        ground.store.note_property(SITE, &state).await.unwrap();
        assert_eq!(ground.store.property(SITE).await.unwrap(), Some(state));
    }
    let slice = slice("page", &[&["a"]], 1);
    let id = slice.id.clone();
    store_slice(&ground, slice).await;
    ground
        .store
        .note_failed_slice(&id, "HTTP 400")
        .await
        .unwrap();
    let slices = ground
        .store
        .slices(SITE, SearchType::Web, &id.dimensions)
        .await
        .unwrap();
    let [stored] = &slices[..] else {
        panic!("{slices:?}")
    };
    assert_eq!(
        (stored.state.as_str(), stored.rows, stored.date),
        ("failed", 1, id.date)
    );
    assert_eq!(
        ground
            .store
            .slices(SITE, SearchType::Image, &id.dimensions)
            .await
            .unwrap(),
        []
    );
}

async fn a_slice_makes_its_property_active_unless_a_quota_holds(ground: Ground) {
    let holds = PropertyState::QuotaLimited {
        until: Timestamp::now() + jiff::SignedDuration::from_hours(1),
        detail: String::new(),
    };
    let over = PropertyState::QuotaLimited {
        until: Timestamp::now() - jiff::SignedDuration::from_hours(1),
        detail: String::new(),
    };
    let lost = PropertyState::PermissionLost {
        detail: "no".into(),
    };
    for (state, after) in [(holds, "quota_limited"), (over, "active"), (lost, "active")] {
        ground.store.note_property(SITE, &state).await.unwrap();
        store_slice(&ground, slice("page", &[&["a"]], 1)).await;
        assert_eq!(
            ground.store.property(SITE).await.unwrap().unwrap().as_str(),
            after
        );
    }
}

/// Sessions that are cut are a database that is away, never a refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_sessions_refuse_nothing() {
    let ground = Ground::new(Kind::Postgres).await;
    let batch = BatchId::generate();
    ground
        .sink
        .commit(marker(batch, 1), json(&["1"]))
        .await
        .unwrap();
    // Every session is cut, as by a failover, in the middle of whatever it does.
    ground
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE application_name = 'tidegate-worker' AND datname = current_database()",
        )
        .await;
    for rows in [json(&["1"]), whole(slice("page", &[&["a"]], 1))] {
        match ground
            .sink
            .commit(marker(BatchId::generate(), 1), rows)
            .await
        {
            Ok(Committed::Now(_)) | Err(SinkError::Unavailable(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let again = ground
        .sink
        .commit(marker(batch, 2), json(&["1"]))
        .await
        .unwrap();
    assert!(matches!(again, Committed::Before(_)));
}
