//! The program, as it is installed: a broker, a coordinator, both stages.

use std::collections::BTreeMap;

use page_check::Checked;
use serde_json::json;
use test_kit::Installation;

use crate::site::Site;

const PROGRAM: &str = env!("CARGO_BIN_EXE_page-check");
const CONFIG: &str = include_str!("../../tidegate.toml");

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_site_is_checked_once() {
    let site = Site::start().await;
    let mut tidegate = Installation::start(CONFIG, PROGRAM).await.unwrap();
    let sitemap = json!([{ "sitemap": site.url("sitemap.txt") }]);
    let ended = tidegate
        .run("sites", [("example.org", sitemap)])
        .await
        .unwrap();
    // The site, and one batch of pages, which went out twice: one page asked for a pause, which burns no attempt.
    let run = &ended.run;
    assert_eq!(
        (run.batches.completed, run.batches.dead, run.retries),
        (2, 0, 0),
        "{ended:?}"
    );
    assert_eq!(run.statistics["lines_skipped"], 2);
    assert_eq!(run.statistics["broken"], 1);

    let rows: Vec<Checked> = tidegate.rows().await.unwrap();
    let statuses: BTreeMap<String, Option<u16>> = rows
        .iter()
        .map(|row| (row.url.to_string(), row.status))
        .collect();
    assert_eq!(rows.len(), statuses.len(), "{rows:?}");
    let expected = [("good", 200), ("broken", 500), ("busy", 200)];
    assert_eq!(
        statuses,
        expected
            .map(|(path, status)| (site.url(path), Some(status)))
            .into()
    );

    let log = tidegate.worker_log().unwrap();
    let mut broken = log.lines().filter(|line| line.contains("a broken page"));
    let second = broken.find(|line| line.contains("attempt=2")).unwrap();
    for part in ["batch.id=", "run.id=", "pipeline=pages", "key=example.org"] {
        assert!(second.contains(part), "{second}");
    }
    assert_eq!(tidegate.stop_worker().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_dead_with_its_reason() {
    let site = Site::start().await;
    let tidegate = Installation::start(CONFIG, PROGRAM).await.unwrap();
    let nothing = json!([{ "sitemap": site.url("nothing") }]);
    let ended = tidegate
        .run("sites", [("example.org", nothing)])
        .await
        .unwrap();
    assert_eq!(ended.dead.len(), 1, "{ended:?}");
    assert_eq!(ended.dead[0].reason, "no_sitemap");
    assert!(ended.dead[0].error.contains("404"), "{ended:?}");
}
