//! Every answer of the API over a real socket and a real ledger.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use shared::config::PipelineConfig;
use shared::name::PipelineName;
use tokio::sync::mpsc;

use super::*;
use crate::fleet::Fleet;
use crate::ledger::sqlite::SqliteLedger;
use crate::notice::Notice;

struct Fixture {
    url: String,
    client: reqwest::Client,
    _notices: mpsc::Receiver<Notice>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new(token: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Arc::new(
            SqliteLedger::open(&folder.path().join("ledger.db"))
                .await
                .unwrap(),
        );
        let (tell, notices) = mpsc::channel(100);
        let api = Api {
            ledger: ledger.clone(),
            submission: SubmissionStage {
                ledger,
                pipelines: BTreeMap::from([(
                    PipelineName::new("hashes").unwrap(),
                    PipelineConfig::default(),
                )]),
                backlog_limit: 10,
                notices: tell,
            },
            fleet: Arc::new(Mutex::new(Fleet::default())),
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            token: token.map(SecretString::from),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(api, listener, CancellationToken::new()));
        Self {
            url,
            client: reqwest::Client::new(),
            _notices: notices,
            _folder: folder,
        }
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.client.get(format!("{}{path}", self.url))).await
    }

    async fn post(&self, query: &str, body: &str) -> (u16, Value) {
        let request = self.client.post(format!("{}/api/v1/runs{query}", self.url));
        answer(
            request
                .header("content-type", "application/x-ndjson")
                .body(body.to_owned()),
        )
        .await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let kind = response
        .headers()
        .get("content-type")
        .map(|kind| kind.to_str().unwrap().to_owned());
    if status >= 400 {
        assert_eq!(kind.as_deref(), Some("application/problem+json"));
    }
    let body = response.text().await.unwrap();
    (
        status,
        serde_json::from_str(&body).unwrap_or(Value::String(body)),
    )
}

#[tokio::test]
async fn a_run_is_submitted_and_shown() {
    let api = Fixture::new(None).await;
    let (status, run) = api
        .post(
            "?pipeline=hashes&priority=high",
            "{\"key\":\"a\",\"payload\":[1]}\n{\"payload\":2}",
        )
        .await;
    assert_eq!(
        (status, &run["state"], &run["priority"]),
        (201, &"running".into(), &"high".into())
    );
    assert_eq!(run["batches"]["accepted"], 2);
    let id = run["run"].as_str().unwrap();
    assert_eq!(
        api.get(&format!("/api/v1/runs/{id}")).await,
        (200, run.clone())
    );
    assert_eq!(
        api.get("/api/v1/runs?state=running&limit=5").await.1["runs"],
        Value::Array(vec![run])
    );
    assert_eq!(
        api.get("/api/v1/runs?state=completed").await.1["runs"],
        Value::Array(vec![])
    );
    assert_eq!(
        api.get("/api/v1/dead").await,
        (200, serde_json::json!({"dead": []}))
    );
    assert_eq!(
        api.get("/api/v1/workers").await,
        (200, serde_json::json!({"workers": []}))
    );
    assert_eq!(api.get("/healthz").await.0, 200);
    assert_eq!(api.get("/readyz").await.0, 200);
    assert_eq!(api.get("/metrics").await.0, 200);
}

#[tokio::test]
async fn every_refusal_has_a_status_and_a_code() {
    let api = Fixture::new(None).await;
    let good = "{\"payload\":1}\n";
    let many = good.repeat(11);
    let big = format!(
        "{{\"payload\":\"{}\"}}",
        "x".repeat(shared::payload::MAX_PAYLOAD_BYTES)
    );
    let posts: [(&str, &str, u16, &str, Option<u64>); 9] = [
        ("?pipeline=nope", good, 422, "unknown_pipeline", None),
        ("", good, 400, "bad_parameter", None),
        (
            "?pipeline=hashes&priority=urgent",
            good,
            400,
            "bad_parameter",
            None,
        ),
        (
            "?pipeline=hashes&colour=red",
            good,
            400,
            "bad_parameter",
            None,
        ),
        (
            "?pipeline=hashes",
            "{\"payload\":1}\n{oops}",
            400,
            "malformed_line",
            Some(2),
        ),
        (
            "?pipeline=hashes",
            "{\"payload\":\"\\u0000\"}",
            422,
            "nul_not_allowed",
            Some(1),
        ),
        ("?pipeline=hashes", "", 400, "empty_submission", None),
        ("?pipeline=hashes", &many, 429, "queue_full", None),
        ("?pipeline=hashes", &big, 413, "payload_too_large", Some(1)),
    ];
    for (query, body, status, code, line) in posts {
        let (got, problem) = api.post(query, body).await;
        assert_eq!(
            (got, problem["code"].as_str()),
            (status, Some(code)),
            "{problem}"
        );
        assert_eq!(problem["line"].as_u64(), line, "{problem}");
    }
    let gets = [
        (
            "/api/v1/runs/00000000-0000-7000-8000-000000000000",
            404,
            "not_found",
        ),
        ("/api/v1/runs/..%2f..%2fetc", 404, "not_found"),
        ("/api/v1/runs?limit=0", 400, "bad_parameter"),
        ("/api/v1/runs?limit=abc", 400, "bad_parameter"),
        ("/api/v1/runs?state=odd", 400, "bad_parameter"),
        ("/api/v1/dead?run=7", 400, "bad_parameter"),
        ("/api/v2", 404, "not_found"),
    ];
    for (path, status, code) in gets {
        let (got, problem) = api.get(path).await;
        assert_eq!(
            (got, problem["code"].as_str()),
            (status, Some(code)),
            "{path}: {problem}"
        );
    }
    let delete = api.client.delete(format!("{}/api/v1/runs", api.url));
    assert_eq!(answer(delete).await.1["code"], "method_not_allowed");
    let html = api
        .client
        .post(format!("{}/api/v1/runs?pipeline=hashes", api.url))
        .header("content-type", "text/html");
    assert_eq!(
        answer(html.body(good)).await.1["code"],
        "unsupported_media_type"
    );
    assert_eq!(
        api.get("/api/v1/runs").await.1["runs"],
        Value::Array(vec![]),
        "nothing was kept"
    );
}

#[tokio::test]
async fn a_token_guards_everything_but_the_probes() {
    let api = Fixture::new(Some("open sesame")).await;
    for path in [
        "/api/v1/runs",
        "/api/v1/dead",
        "/api/v1/workers",
        "/metrics",
    ] {
        assert_eq!(api.get(path).await.1["code"], "unauthorized", "{path}");
        let wrong = api
            .client
            .get(format!("{}{path}", api.url))
            .bearer_auth("open barley");
        assert_eq!(answer(wrong).await.0, 401, "{path}");
        let right = api
            .client
            .get(format!("{}{path}", api.url))
            .bearer_auth("open sesame");
        assert_eq!(answer(right).await.0, 200, "{path}");
    }
    assert_eq!(api.post("?pipeline=hashes", "{\"payload\":1}").await.0, 401);
    assert_eq!(api.get("/healthz").await.0, 200);
    assert_eq!(api.get("/readyz").await.0, 200);
}
