//! Runs, pipelines and workers: what is answered when all is well.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_run_is_submitted_and_shown() {
    let api = Fixture::new().await;
    let submitted = api
        .submit(
            "?pipeline=hashes&priority=high",
            "{\"key\":\"a\",\"payload\":[1]}\n{\"payload\":2}",
        )
        .await;
    let run = submitted.body;
    assert_eq!(submitted.status, 201);
    assert_eq!(
        (&run["state"], &run["priority"]),
        (&json!("running"), &json!("high"))
    );
    assert_eq!(run["batches"]["accepted"], 2);
    let id = run["run"].as_str().unwrap();
    let shown = api.get(&format!("/api/v1/runs/{id}")).await;
    assert_eq!((shown.status, &shown.body), (200, &run));
    let listed = api.get("/api/v1/runs?state=running&limit=5").await.body;
    assert_eq!(listed, json!({ "runs": [run] }));
    let none = api.get("/api/v1/runs?state=completed").await.body;
    assert_eq!(none, json!({ "runs": [] }));
    assert_eq!(
        api.get("/api/v1/workers").await.body,
        json!({ "workers": [] })
    );
    assert_eq!(
        api.get("/api/v1/schedules").await.body,
        json!({ "schedules": [] })
    );
    assert_eq!(
        api.get("/api/v1/levels").await.body,
        json!({ "level": "ok", "broker_blocked": false, "measures": {} })
    );
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(api.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn runs_and_batches_come_in_pages() {
    let api = Fixture::new().await;
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(api.run_of(1).await.to_string());
    }
    runs.reverse();
    let ids = |page: &Value, list: &str, id: &str| -> Vec<String> {
        let entries = page[list].as_array().unwrap();
        entries
            .iter()
            .map(|e| e[id].as_str().unwrap().to_owned())
            .collect()
    };
    let first = api.get("/api/v1/runs?limit=2").await.body;
    assert_eq!(ids(&first, "runs", "run"), runs[..2]);
    let next = first["next"].as_str().unwrap();
    let second = api
        .get(&format!("/api/v1/runs?limit=2&before={next}"))
        .await
        .body;
    assert_eq!(ids(&second, "runs", "run"), runs[2..]);
    assert!(second["next"].is_null());

    let run = api.run_of(5).await;
    let batches: Vec<String> = api
        .batches_of(run)
        .await
        .iter()
        .map(ToString::to_string)
        .collect();
    let first = api
        .get(&format!("/api/v1/runs/{run}/batches?limit=3&state=pending"))
        .await
        .body;
    assert_eq!(ids(&first, "batches", "batch"), batches[..3]);
    let next = first["next"].as_str().unwrap();
    let rest = format!("/api/v1/runs/{run}/batches?limit=3&after={next}");
    assert_eq!(
        ids(&api.get(&rest).await.body, "batches", "batch"),
        batches[3..]
    );
    let none = format!("/api/v1/runs/{run}/batches?state=dead");
    assert_eq!(api.get(&none).await.body, json!({ "batches": [] }));
}

#[tokio::test]
async fn operators_change_runs() {
    let mut api = Fixture::new().await;
    let run = api.run_of(2).await;
    let path = |verb: &str| format!("/api/v1/runs/{run}/{verb}");
    let paused = api.post(&path("pause")).await;
    assert_eq!(
        (paused.status, &paused.body["state"]),
        (200, &json!("paused"))
    );
    let low = api.post(&path("priority?priority=low")).await;
    assert_eq!((low.status, &low.body["priority"]), (200, &json!("low")));
    let resumed = api.post(&path("resume")).await;
    assert_eq!(
        (resumed.status, &resumed.body["state"]),
        (200, &json!("running"))
    );
    for _ in 0..2 {
        let cancelled = api.post(&path("cancel")).await;
        assert_eq!(
            (cancelled.status, &cancelled.body["state"]),
            (200, &json!("cancelled"))
        );
    }
    let mut heard = Vec::new();
    while let Ok(notice) = api.notices.try_recv() {
        heard.push(notice);
    }
    let expected = matches!(
        heard[..],
        [
            Notice::Accepted(_),
            Notice::Stopped(_),
            Notice::Changed(_),
            Notice::Changed(_),
            Notice::Stopped(_),
            Notice::Stopped(_),
        ]
    );
    assert!(expected, "{heard:?}");
}

#[tokio::test]
async fn pipelines_are_shown_paused_and_resumed() {
    let api = Fixture::new().await;
    api.run_of(3).await;
    let view = |paused: bool| {
        json!({
            "pipeline": "hashes", "configured": true, "paused": paused,
            "pending": 3, "out": 0, "slots": 0, "window": 16
        })
    };
    let pipelines = api.get("/api/v1/pipelines").await.body;
    assert_eq!(pipelines, json!({ "pipelines": [view(false)] }));
    for (verb, paused) in [("pause", true), ("pause", true), ("resume", false)] {
        let answer = api.post(&format!("/api/v1/pipelines/hashes/{verb}")).await;
        assert_eq!((answer.status, answer.body), (200, view(paused)));
        let pipelines = api.get("/api/v1/pipelines").await.body;
        assert_eq!(pipelines, json!({ "pipelines": [view(paused)] }));
    }
}

#[tokio::test]
async fn the_doctor_says_what_is_wrong() {
    let api = Fixture::new().await;
    let answer = api.get("/api/v1/doctor").await;
    assert_eq!(
        (answer.status, &answer.body["finding"]),
        (200, &json!("fail"))
    );
    let checks = answer.body["checks"].as_array().unwrap();
    let find = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    assert_eq!(find("broker")["finding"], "fail");
    assert!(
        find("broker")["detail"]
            .as_str()
            .unwrap()
            .contains("cannot be reached")
    );
    assert_eq!(find("ledger")["finding"], "ok");
    assert_eq!(find("workers")["finding"], "warn");
    assert_eq!(find("sink")["finding"], "unknown");
}
