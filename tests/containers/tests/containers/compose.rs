//! `docker compose up`, as deploy/README.md has it.

use std::time::Duration;

use containers::compose::Project;
use harness::wait;
use serde_json::Value;

const HEALTHY_LIMIT: Duration = Duration::from_mins(2);

async fn wait_for_workers(project: &Project, count: usize) {
    wait::until("the workers to be healthy", HEALTHY_LIMIT, async || {
        Ok((project.healthy_workers()? == count).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn compose_starts_syncs_and_scales() {
    let project = Project::new().unwrap();
    let up = ["up", "--detach", "--no-build", "--no-recreate"];
    project.compose(&up).unwrap();
    wait_for_workers(&project, 3).await;
    project
        .compose(&[&up[..], &["--scale", "worker=8"]].concat())
        .unwrap();
    wait_for_workers(&project, 8).await;

    let mut sync = vec!["sync", "search-console", "--watch", "--json", "--days", "3"];
    sync.extend(["--property", "sc-domain:alpha.example"]);
    sync.extend(["--property", "https://beta.example/"]);
    let run: Value = serde_json::from_str(&project.tidegate(&sync).unwrap()).unwrap();
    assert_eq!(run["state"], "completed", "{run}");
    let stored = project
        .query("select sum(rows) from search_analytics_slices")
        .unwrap();
    assert_eq!(run["rows"].to_string(), stored, "{run}");
    assert_ne!(stored, "0");

    project
        .compose(&[&up[..], &["--scale", "worker=2"]].concat())
        .unwrap();
    wait_for_workers(&project, 2).await;
}
