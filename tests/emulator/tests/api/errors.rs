//! Refusals: their order, their status, their reasons.

use serde_json::{Value, json};

use crate::support::{ALPHA, DAY, UNVERIFIED, day, reason, start, with};

#[tokio::test]
async fn requests_are_refused_for_what_they_ask() {
    let fixture = start().await;
    let refused = [
        (with(day(&["date"]), &json!({"rowLimit": 0})), "rowLimit"),
        (
            with(day(&["date"]), &json!({"rowLimit": 25_001})),
            "rowLimit",
        ),
        (with(day(&["date"]), &json!({"startRow": -1})), "startRow"),
        (
            with(day(&["date"]), &json!({"startDate": "2026-02-11"})),
            "start date",
        ),
        (
            with(day(&["date"]), &json!({"startDate": "2026-2-1"})),
            "startDate",
        ),
        (with(day(&["date"]), &json!({"type": "maps"})), "type"),
        (
            with(day(&["date"]), &json!({"dataState": "fresh"})),
            "dataState",
        ),
        (with(day(&["date"]), &json!({"limit": 1})), "Unknown name"),
        (day(&["place"]), "dimensions"),
        (day(&["date", "date"]), "Duplicate"),
        (day(&["hour"]), "hourly_all"),
        (
            day(&["date", "searchAppearance"]),
            "Cannot group by search appearance dimension together with another dimension.",
        ),
        (
            with(day(&["device"]), &json!({"type": "discover"})),
            "Requests for Discover cannot be grouped by device",
        ),
        (with(day(&["query"]), &json!({"type": "discover"})), "query"),
        (
            with(day(&["query"]), &json!({"type": "GOOGLE_NEWS"})),
            "query",
        ),
        (
            with(day(&["page"]), &json!({"aggregationType": "byProperty"})),
            "property",
        ),
        (json!({"endDate": DAY}), "startDate"),
        (json!([]), "JSON"),
    ];
    for (body, message) in refused {
        let (status, answer) = fixture.ask(ALPHA, &body).await;
        assert_eq!(status, 400, "{body}");
        assert!(
            answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains(message),
            "{body}: {answer}"
        );
        assert!(
            ["badRequest", "invalidParameter"].contains(&reason(&answer)),
            "{answer}"
        );
        assert_eq!(answer["error"]["status"], "INVALID_ARGUMENT");
    }
}

#[tokio::test]
async fn sites_need_permission_and_the_body_is_google_s() {
    let fixture = start().await;
    for site in [
        UNVERIFIED,
        "https://beta.example",
        "sc-domain:nobody.example",
    ] {
        let answer = fixture.query(site, &day(&["date"])).send().await.unwrap();
        assert_eq!(answer.status(), 403);
        let message = format!(
            "User does not have sufficient permission for site '{site}'. \
             See also: https://support.google.com/webmasters/answer/2451999."
        );
        let expected = format!(
            r#"{{"error":{{"code":403,"message":"{message}","errors":[{{"message":"{message}","domain":"global","reason":"forbidden"}}]}}}}"#
        );
        assert_eq!(answer.text().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn checks_come_in_the_order_of_the_specification() {
    let fixture = start().await;
    let wrong = json!({"rowLimit": 0});
    fixture.faults(&json!([{"kind": "503", "site": ALPHA}]));
    fixture
        .emulator
        .configure(json!({"new_project": true}))
        .unwrap();
    let status = async |site: &str, token: &str| {
        let request = fixture.query(site, &wrong).build().unwrap();
        let request = reqwest::RequestBuilder::from_parts(fixture.client.clone(), request);
        let mut request = request.build().unwrap();
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        fixture
            .client
            .execute(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(status(ALPHA, "wrong").await, 401);
    assert_eq!(status(ALPHA, &fixture.token).await, 503);
    fixture.faults(&json!([]));
    for _ in 0..60 {
        assert_eq!(status(ALPHA, &fixture.token).await, 400);
    }
    assert_eq!(status(ALPHA, &fixture.token).await, 429);
    assert_eq!(status(UNVERIFIED, &fixture.token).await, 403);
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_json() {
    let fixture = start().await;
    for (path, status) in [
        ("/webmasters/v4/sites", 404),
        ("/webmasters/v3/sites/x/searchAnalytics/query", 405),
        ("/__emu/nothing", 404),
    ] {
        let answer = fixture.get(path).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(
            answer.json::<Value>().await.unwrap()["error"]["code"],
            status
        );
    }
    let answer = fixture
        .client
        .get(fixture.url("/anything"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
}

#[tokio::test]
async fn wrong_settings_are_refused_and_change_nothing() {
    let fixture = start().await;
    for change in [
        json!({"qps": 1}),
        json!({"retention_days": 0}),
        json!({"faults": [{}]}),
    ] {
        let request = fixture
            .client
            .post(fixture.url("/__emu/config"))
            .json(&change);
        assert_eq!(request.send().await.unwrap().status(), 400, "{change}");
    }
    assert_eq!(fixture.rows(ALPHA, &day(&["date"])).await.len(), 1);
}
