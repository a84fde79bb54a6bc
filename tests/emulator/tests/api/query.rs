//! Queries: rows, pages, formats, and the other readable endpoints.

use std::collections::HashSet;

use reqwest::Client;
use serde_json::{Value, json};

use crate::support::{ALPHA, BETA, DAY, LARGE, day, start, url_encoded, with};

#[tokio::test]
async fn answers_are_the_truth() {
    let fixture = start().await;
    let rows = fixture
        .rows(ALPHA, &day(&["page", "query", "country", "device"]))
        .await;
    let truth = fixture
        .truth(&format!(
            "site={ALPHA}&date={DAY}&dims=page,query,country,device"
        ))
        .await;
    assert!(!rows.is_empty());
    assert_eq!(rows, truth);
}

#[tokio::test]
async fn a_capped_day_has_two_full_pages_and_an_empty_one() {
    let fixture = start().await;
    let dimensions = ["page", "query", "country", "device"];
    let mut keys = HashSet::new();
    for (start_row, count) in [(0, 25_000), (25_000, 25_000), (50_000, 0)] {
        let body = with(day(&dimensions), &json!({ "startRow": start_row }));
        let rows = fixture.rows(LARGE, &body).await;
        assert_eq!(rows.len(), count);
        keys.extend(rows.iter().map(|row| row["keys"].to_string()));
    }
    assert_eq!(keys.len(), 50_000);
    let query = format!(
        "site={LARGE}&date={DAY}&dims={}&cap=0",
        dimensions.join(",")
    );
    assert!(fixture.truth(&query).await.len() > 50_000);
}

#[tokio::test]
async fn an_empty_answer_has_no_rows_at_all() {
    let fixture = start().await;
    let (_, answer) = fixture
        .ask(ALPHA, &with(day(&["date"]), &json!({"startRow": 1})))
        .await;
    assert_eq!(answer, json!({"responseAggregationType": "byProperty"}));
}

#[tokio::test]
async fn without_dimensions_there_is_one_row_without_keys() {
    let fixture = start().await;
    let rows = fixture.rows(ALPHA, &day(&[])).await;
    assert_eq!(rows.len(), 1);
    assert!(rows[0].get("keys").is_none());
    assert_eq!(
        (&rows[0]["clicks"], &rows[0]["impressions"]),
        (&json!(150), &json!(6645))
    );
}

#[tokio::test]
async fn discover_has_no_position() {
    let fixture = start().await;
    let rows = fixture
        .rows(ALPHA, &with(day(&["page"]), &json!({"type": "discover"})))
        .await;
    assert!(!rows.is_empty() && rows.iter().all(|row| row.get("position").is_none()));
}

#[tokio::test]
async fn fields_and_pretty_print_change_only_the_format() {
    let fixture = start().await;
    let path = format!(
        "/webmasters/v3/sites/{}/searchAnalytics/query",
        url_encoded(ALPHA)
    );
    let ask = async |parameters: &str| {
        let url = fixture.url(&format!("{path}{parameters}"));
        let request = fixture
            .client
            .post(url)
            .bearer_auth(&fixture.token)
            .json(&day(&["country"]));
        request.send().await.unwrap().text().await.unwrap()
    };
    let pretty = ask("").await;
    assert!(
        pretty.starts_with("{\n  \"rows\": [\n    {\n      \"keys\": [\n"),
        "{pretty}"
    );
    let compact = ask("?prettyPrint=false").await;
    assert!(!compact.contains('\n'));
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(value(&pretty), value(&compact));
    let fields = ask("?fields=rows(keys,clicks),metadata&prettyPrint=false").await;
    let row = &value(&fields)["rows"][0];
    assert_eq!(row.as_object().map(serde_json::Map::len), Some(2), "{row}");
    assert!(value(&fields).get("responseAggregationType").is_none());
}

#[tokio::test]
async fn gzip_comes_when_asked_for() {
    let fixture = start().await;
    let plain = Client::builder().no_gzip().build().unwrap();
    let request = |client: &Client, encoding: Option<&str>| {
        let request = fixture.query(ALPHA, &day(&["query"])).build().unwrap();
        let mut request = reqwest::RequestBuilder::from_parts(client.clone(), request);
        if let Some(encoding) = encoding {
            request = request.header("accept-encoding", encoding);
        }
        request.send()
    };
    let compressed = request(&plain, Some("gzip")).await.unwrap();
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
    let compressed = compressed.bytes().await.unwrap();
    let whole = request(&plain, None).await.unwrap().bytes().await.unwrap();
    assert!(compressed.len() * 3 < whole.len());
    assert_eq!(
        request(&fixture.client, None)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap(),
        whole
    );
}

#[tokio::test]
async fn http2_without_tls_works_on_the_same_port() {
    let fixture = start().await;
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    let request = fixture.query(ALPHA, &day(&["date"])).build().unwrap();
    let answer = client.execute(request).await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert_eq!(fixture.emulator.stats().h2_streams, 1);
}

#[tokio::test]
async fn metadata_tells_the_first_incomplete_day() {
    let fixture = start().await;
    let recent =
        json!({"startDate": "2026-02-20", "endDate": "2026-03-01", "dimensions": ["date"]});
    let fresh = with(recent.clone(), &json!({"dataState": "all"}));
    let (_, answer) = fixture.ask(ALPHA, &fresh).await;
    assert_eq!(
        answer["metadata"],
        json!({"first_incomplete_date": "2026-02-28"})
    );
    assert_eq!(answer["rows"].as_array().map(Vec::len), Some(10));
    let (_, answer) = fixture.ask(ALPHA, &recent).await;
    assert!(answer.get("metadata").is_none());
    assert_eq!(answer["rows"].as_array().map(Vec::len), Some(7));
    fixture
        .emulator
        .configure(json!({"spelling": "camel", "first_incomplete_age": 2}))
        .unwrap();
    let (_, answer) = fixture.ask(ALPHA, &fresh).await;
    assert_eq!(
        answer["metadata"],
        json!({"firstIncompleteDate": "2026-02-27"})
    );
}

#[tokio::test]
async fn shuffled_ties_break_paging_but_not_sorting() {
    let fixture = start().await;
    fixture
        .emulator
        .configure(json!({"tie_mode": "shuffle_per_request"}))
        .unwrap();
    let first = fixture.rows(ALPHA, &day(&["query"])).await;
    let second = fixture.rows(ALPHA, &day(&["query"])).await;
    assert_ne!(first, second);
    let clicks = |rows: &[Value]| {
        rows.iter()
            .map(|row| row["clicks"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(clicks(&first), clicks(&second));
}

#[tokio::test]
async fn sites_sitemaps_and_inspections_are_served() {
    let fixture = start().await;
    let get = async |path: String| -> Value {
        fixture
            .get(&path)
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap()
            .json()
            .await
            .unwrap()
    };
    let sites = get("/webmasters/v3/sites".into()).await;
    assert_eq!(sites["siteEntry"].as_array().map(Vec::len), Some(5));
    let site = url_encoded(BETA);
    let single = get(format!("/webmasters/v3/sites/{site}")).await;
    assert_eq!(
        single,
        json!({"siteUrl": BETA, "permissionLevel": "siteFullUser"})
    );

    let sitemaps = get(format!("/webmasters/v3/sites/{site}/sitemaps")).await;
    let index = &sitemaps["sitemap"][0];
    assert_eq!(
        (&index["isSitemapsIndex"], &index["warnings"]),
        (&json!(true), &json!("0"))
    );
    let feed = index["path"].as_str().unwrap();
    assert_eq!(
        &get(format!(
            "/webmasters/v3/sites/{site}/sitemaps/{}",
            url_encoded(feed)
        ))
        .await,
        index
    );
    let below = get(format!(
        "/webmasters/v3/sites/{site}/sitemaps?sitemapIndex={}",
        url_encoded(feed)
    ))
    .await;
    assert_eq!(below["sitemap"].as_array().map(Vec::len), Some(2));

    let body = json!({"siteUrl": BETA, "inspectionUrl": "https://beta.example/p/1"});
    let request = fixture
        .client
        .post(fixture.url("/v1/urlInspection/index:inspect"))
        .json(&body);
    let answer: Value = request
        .bearer_auth(&fixture.token)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(
        answer["inspectionResult"]["indexStatusResult"]["robotsTxtState"],
        "ALLOWED"
    );
}

#[tokio::test]
async fn counters_tell_what_was_asked() {
    let fixture = start().await;
    for _ in 0..2 {
        fixture.rows(ALPHA, &day(&["date"])).await;
    }
    let stats = fixture.stats().await;
    assert_eq!(stats["fetches"][format!("{ALPHA}|web|{DAY}|date|0")], 2);
    assert_eq!(
        (&stats["duplicates"], &stats["rows_out"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(stats["by_status"], json!({"200": 2}));
    assert_eq!(stats["by_site"][ALPHA], 2);
    assert_eq!(stats["in_flight"], 0);
}
