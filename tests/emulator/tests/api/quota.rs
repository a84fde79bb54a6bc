//! Quotas over the wire: which error, and what is counted.

use emulator::Config;
use serde_json::json;

use crate::support::{ALPHA, BETA, Fixture, day, reason, start, start_with};

/// Status and reason of as many queries as it takes to be refused, and how many passed before.
async fn until_refused(fixture: &Fixture, site: &str) -> (usize, u16, String) {
    for passed in 0..1000 {
        let (status, body) = fixture.ask(site, &day(&["page", "query"])).await;
        if status != 200 {
            return (passed, status.as_u16(), reason(&body).to_owned());
        }
    }
    panic!("never refused");
}

#[tokio::test]
async fn every_window_has_its_own_error() {
    let fixture = start().await;
    for (change, passed, status, reason) in [
        (json!({"qps_burst": 5}), 5, 403, "quotaExceeded"),
        (json!({"qpm_site": 7}), 7, 403, "quotaExceeded"),
        (json!({"qpm_user": 3}), 3, 403, "userRateLimitExceeded"),
        (json!({"qpm_project": 4}), 4, 403, "rateLimitExceeded"),
        (json!({"new_project": true}), 60, 429, "rateLimitExceeded"),
        (json!({"qpd_project": 2}), 2, 403, "dailyLimitExceeded"),
        // A query for page and query costs 25.
        (json!({"load_short": 60}), 2, 403, "quotaExceeded"),
        (json!({"load_long": 100}), 4, 403, "quotaExceeded"),
    ] {
        fixture
            .emulator
            .configure(serde_json::to_value(Config::default().unlimited()).unwrap())
            .unwrap();
        fixture.emulator.reset();
        fixture.emulator.configure(change.clone()).unwrap();
        assert_eq!(
            until_refused(&fixture, ALPHA).await,
            (passed, status, reason.to_owned()),
            "{change}"
        );
        let stats = fixture.stats().await;
        let key = change.as_object().unwrap().keys().next().unwrap();
        assert_eq!(stats["over_quota"][key], 1);
        assert_eq!(stats["by_site"][ALPHA], passed + 1);
    }
}

#[tokio::test]
async fn one_site_s_burst_leaves_other_sites_alone() {
    let fixture = start_with(Config {
        qps_burst: 3,
        ..Config::default().unlimited()
    })
    .await;
    assert_eq!(until_refused(&fixture, ALPHA).await.0, 3);
    assert_eq!(fixture.ask(BETA, &day(&["date"])).await.0, 200);
    fixture.emulator.reset();
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 200);
}

#[tokio::test]
async fn load_and_rate_errors_differ_in_text_only() {
    let fixture = start_with(Config {
        load_short: 10,
        ..Config::default().unlimited()
    })
    .await;
    let (_, load) = fixture.ask(ALPHA, &day(&["page", "query"])).await;
    fixture
        .emulator
        .configure(json!({"load_short": 0, "qps_burst": 1}))
        .unwrap();
    fixture.ask(ALPHA, &day(&["date"])).await;
    let (_, rate) = fixture.ask(ALPHA, &day(&["date"])).await;
    let message = |body: &serde_json::Value| body["error"]["message"].as_str().unwrap().to_owned();
    assert!(message(&load).starts_with("Search Analytics load quota exceeded."));
    assert!(message(&rate).starts_with("Search Analytics QPS quota exceeded."));
    assert_eq!(reason(&load), reason(&rate));
}
