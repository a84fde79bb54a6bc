//! Dead batches: found, counted, redriven, discarded.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_dead_batch_is_shown_with_its_history() {
    let api = Fixture::new().await;
    let run = api.run_of(1).await;
    let batch = api.kill(run, "poison").await[0];
    let shown = api.get(&format!("/api/v1/batches/{batch}")).await;
    assert_eq!(shown.status, 200);
    let detail = shown.body;
    assert_eq!(detail["batch"], json!(batch));
    assert_eq!(
        (&detail["state"], &detail["reason"]),
        (&json!("dead"), &json!("poison"))
    );
    assert_eq!(detail["payload"], json!(1));
    let attempt = &detail["history"][0];
    assert_eq!(
        (
            &attempt["attempt"],
            &attempt["worker"],
            &attempt["verdict"],
            &attempt["took_ms"]
        ),
        (&json!(1), &json!("w1"), &json!("poison"), &json!(7))
    );
}

#[tokio::test]
async fn filters_choose_which() {
    let api = Fixture::new().await;
    let (run, other) = (api.run_of(2).await, api.run_of(3).await);
    let batch = api.kill(run, "poison").await[0];
    api.kill(other, "failed").await;
    let cases = [
        (String::new(), 5),
        (format!("run={run}"), 2),
        ("pipeline=hashes".into(), 5),
        ("pipeline=others".into(), 0),
        ("key=default".into(), 5),
        ("key=nobody".into(), 0),
        ("reason=failed".into(), 3),
        (format!("batch={batch}"), 1),
        ("older_than=1h".into(), 0),
        ("older_than=0.001s".into(), 5),
        (format!("run={run}&reason=failed"), 0),
    ];
    for (query, expected) in cases {
        let dead = api
            .get(&format!("/api/v1/dead?limit=10&{query}"))
            .await
            .body;
        assert_eq!(dead["dead"].as_array().unwrap().len(), expected, "{query}");
        let count = api.get(&format!("/api/v1/dead/count?{query}")).await.body;
        assert_eq!(count, json!({ "count": expected }), "{query}");
    }
}

#[tokio::test]
async fn redriven_once_and_discarded_for_good() {
    let mut api = Fixture::new().await;
    let run = api.run_of(4).await;
    api.kill(run, "poison").await;
    assert!(matches!(api.notices.try_recv(), Ok(Notice::Accepted(_))));
    let done = |batches: u32, dry_run: bool| json!({ "batches": batches, "dry_run": dry_run, "interrupted": false });
    for verb in ["redrive", "discard"] {
        let dry = api
            .post(&format!("/api/v1/dead/{verb}?reason=poison&dry_run=true"))
            .await;
        assert_eq!((dry.status, dry.body), (200, done(4, true)));
    }
    assert!(api.notices.try_recv().is_err(), "nothing was done");
    let redriven = api
        .post("/api/v1/dead/redrive?reason=poison&rate=1000")
        .await;
    assert_eq!((redriven.status, redriven.body), (200, done(4, false)));
    assert!(matches!(api.notices.try_recv(), Ok(Notice::Pending(backlogs)) if backlogs.len() == 1));
    let again = api.post("/api/v1/dead/redrive?all=true").await;
    assert_eq!((again.status, again.body), (200, done(0, false)));

    let other = api.run_of(1).await;
    api.kill(other, "failed").await;
    let discarded = api.post("/api/v1/dead/discard?all=true").await;
    assert_eq!((discarded.status, discarded.body), (200, done(1, false)));
    let run = api.get(&format!("/api/v1/runs/{other}")).await.body;
    assert_eq!(
        (&run["batches"]["dead"], &run["batches"]["cancelled"]),
        (&json!(0), &json!(1))
    );
}
