//! Each handler alone: no broker, no coordinator.

use std::time::Duration;

use page_check::{Checked, Pages, Sites};
use serde_json::json;
use test_kit::{Completed, Leave, Outcome, Said, ScriptedPermits, Trial};

use crate::site::Site;

fn completed(outcome: Outcome) -> Completed {
    match outcome {
        Outcome::Completed(completed) => completed,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_sitemap_becomes_batches_of_pages() {
    let site = Site::start().await;
    let trial = Trial::of(Sites::default()).key("example.org");
    let tried = trial
        .run(&json!([{ "sitemap": site.url("many.txt") }]))
        .await;
    let done = completed(tried.outcome);
    let sizes: Vec<usize> = done
        .follow_ups
        .iter()
        .map(|follow_up| {
            assert_eq!(follow_up.pipeline.as_str(), "pages");
            assert_eq!(follow_up.key.as_str(), "example.org");
            let pages: Vec<String> = serde_json::from_str(follow_up.payload.get()).unwrap();
            pages.len()
        })
        .collect();
    assert_eq!(sizes, [20, 20, 5]);
    assert_eq!(done.statistics["pages"], 45);
}

#[tokio::test]
async fn what_is_no_sitemap_is_given_up_and_a_dead_site_is_tried_again() {
    let site = Site::start().await;
    let trial = Trial::of(Sites::default());
    let no_sitemap = trial
        .run(&json!([{ "sitemap": site.url("nothing") }]))
        .await;
    match no_sitemap.outcome {
        Outcome::Failed { reason, error } => {
            assert_eq!(reason, "no_sitemap");
            assert!(error.contains("404"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    for may_pass in [site.url("broken"), "http://127.0.0.1:1/".to_owned()] {
        let tried = trial.run(&json!([{ "sitemap": may_pass }])).await;
        assert!(matches!(tried.outcome, Outcome::Retry { .. }), "{tried:?}");
    }
    match trial.run(&json!([{ "sitemap": "no url" }])).await.outcome {
        Outcome::Failed { reason, .. } => assert_eq!(reason, "bad_payload"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_call_has_its_leave_and_each_page_its_row() {
    let site = Site::start().await;
    let permits = ScriptedPermits::new([]);
    let trial = Trial::of(Pages::default())
        .key("example.org")
        .permits(&permits);
    let urls = ["good", "broken"].map(|path| site.url(path));
    let tried = trial
        .run(&[&urls[..], &["http://127.0.0.1:1/".to_owned()]].concat())
        .await;
    let rows: Vec<Checked> = tried.rows_as();
    let told: Vec<(Option<u16>, usize, bool)> = rows
        .iter()
        .map(|row| (row.status, row.bytes, row.error.is_some()))
        .collect();
    assert_eq!(
        told,
        [
            (Some(200), 5, false),
            (Some(500), 0, false),
            (None, 0, true)
        ]
    );
    assert_eq!(completed(tried.outcome).statistics["broken"], 2);
    let asked = permits.asked();
    assert_eq!(asked.len(), 3);
    assert!(
        asked
            .iter()
            .all(|want| want.limit.as_str() == "page-check" && want.n == 1)
    );
    assert_eq!(permits.said(), [Said::Accepted, Said::Accepted]);
}

#[tokio::test]
async fn a_site_that_asks_for_a_pause_gets_it() {
    let site = Site::start().await;
    let permits = ScriptedPermits::new([]);
    let trial = Trial::of(Pages::default()).permits(&permits);
    let tried = trial.run(&[site.url("busy")]).await;
    match tried.outcome {
        Outcome::Throttled { after_ms, .. } => assert_eq!(after_ms, Duration::from_secs(1)),
        other => panic!("{other:?}"),
    }
    assert!(tried.rows.is_empty());
    assert!(matches!(permits.said()[..], [Said::TooFast { .. }]));

    let parked = ScriptedPermits::new([Leave::Now, Leave::Parked(Duration::from_mins(5))]);
    let tried = Trial::of(Pages::default()).permits(&parked);
    let tried = tried.run(&[site.url("good"), site.url("good")]).await;
    match tried.outcome {
        Outcome::Throttled { after_ms, .. } => assert_eq!(after_ms, Duration::from_mins(5)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_page_that_never_answers_costs_its_own_batch_alone() {
    let site = Site::start().await;
    let trial = Trial::of(Pages::default()).deadline(Duration::from_millis(50));
    let tried = trial.run(&[site.url("silent")]).await;
    match tried.outcome {
        Outcome::Retry { error, .. } => assert!(error.contains("deadline"), "{error}"),
        other => panic!("{other:?}"),
    }
    let rows: Vec<Checked> = trial.run(&[site.url("good")]).await.rows_as();
    assert_eq!(rows.len(), 1);
}
