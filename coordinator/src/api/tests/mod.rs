//! Every answer of the API over a real socket and a real ledger.

mod access;
mod dead;
mod document;
mod refusals;
mod runs;
mod slow;
mod tls;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::Value;
use shared::broker::Connector;
use shared::config::{ApiConfig, BrokerConfig, Config, PipelineConfig, TokenConfig};
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, PipelineName};
use shared::tls::ServerTls;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::openapi::OpenApi;

use super::*;
use crate::fleet::Fleet;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{Judged, SettlementLedger, Verdict};
use crate::limits::SharedLimits;
use crate::notice::Notice;
use crate::schedules::Schedules;
use crate::submission::{NoPressure, NoWebhooks, Room};

/// Long enough for a busy machine, short enough to wait for.
const PATIENCE: Patience = Patience {
    head: Duration::from_secs(2),
    body: Duration::from_secs(2),
};

/// An API with one pipeline, `hashes`, a backlog limit of 10, and no broker.
struct Fixture {
    url: String,
    client: reqwest::Client,
    ledger: Arc<SqliteLedger>,
    notices: mpsc::Receiver<Notice>,
    document: OpenApi,
    draining: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    folder: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with_tokens(tokens: &[(Role, &str)]) -> Self {
        let token = |(role, token): &(Role, &str)| TokenConfig {
            role: *role,
            token: Some(SecretString::from(*token)),
            file: None,
        };
        let config = ApiConfig {
            tokens: tokens.iter().map(token).collect(),
            ..ApiConfig::default()
        };
        Self::with(|api| api.tokens = Tokens::new(&config).unwrap()).await
    }

    async fn with(change: impl FnOnce(&mut Api)) -> Self {
        Self::over(None, change).await
    }

    async fn over(tls: Option<ServerTls>, change: impl FnOnce(&mut Api)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger.db");
        let ledger = Arc::new(SqliteLedger::open(&file).await.unwrap());
        let (tell, notices) = mpsc::channel(100);
        let mut api = api(&ledger, tell);
        change(&mut api);
        let api = Arc::new(api);
        let document = router(&api).1;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let draining = CancellationToken::new();
        let server = Server {
            listener,
            tls,
            max_connections: 64,
            patience: PATIENCE,
            draining: draining.clone(),
        };
        let serving = tokio::spawn(serve(api, server));
        Self {
            url,
            client: reqwest::Client::new(),
            ledger,
            notices,
            document,
            draining,
            serving,
            folder,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, |request| request).await
    }

    async fn post(&self, path: &str) -> Answer {
        self.send(Method::POST, path, |request| request).await
    }

    async fn submit(&self, query: &str, lines: &str) -> Answer {
        self.send(Method::POST, &format!("/api/v1/runs{query}"), |request| {
            request
                .header("content-type", "application/x-ndjson")
                .body(lines.to_owned())
        })
        .await
    }

    /// Sends a request, and checks what is promised of every answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        more: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Answer {
        let request = self
            .client
            .request(method.clone(), format!("{}{path}", self.url));
        let response = more(request).send().await.unwrap();
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let answer = Answer {
            status,
            headers,
            body,
        };
        self.check(&method, path, &answer);
        answer
    }

    /// An error is a problem document whose code the API's description lists for this operation.
    fn check(&self, method: &Method, path: &str, answer: &Answer) {
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        if answer.status < 400 {
            return;
        }
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(answer.body["type"], "about:blank");
        assert_eq!(answer.body["status"], answer.status);
        for text in ["title", "detail"] {
            assert!(
                !answer.body[text].as_str().unwrap().is_empty(),
                "{answer:?}"
            );
        }
        match answer.status {
            401 => assert_eq!(answer.header("www-authenticate"), "Bearer"),
            405 => assert!(!answer.header("allow").is_empty()),
            429 | 503 => assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1),
            _ => {}
        }
        if let Some(operation) = self.operation(method, path) {
            let listed = operation["responses"][answer.status.to_string()]["description"]
                .as_str()
                .unwrap_or_default();
            let code = format!("`{}`", answer.code());
            assert!(
                listed.contains(&code),
                "{method} {path} lists {code}: {listed:?}"
            );
        }
    }

    /// The description of an operation.
    fn operation(&self, method: &Method, path: &str) -> Option<Value> {
        let path = path.split('?').next().unwrap();
        let fits = |template: &str| {
            let pairs = template.split('/').zip(path.split('/'));
            template.split('/').count() == path.split('/').count()
                && pairs.into_iter().all(|(t, p)| t == p || t.starts_with('{'))
        };
        let document = serde_json::to_value(&self.document).unwrap();
        let paths = document["paths"].as_object().unwrap();
        // A literal path wins over one with a name in it.
        let found = paths
            .keys()
            .filter(|template| fits(template))
            .min_by_key(|template| template.matches('{').count())?;
        let operation = &paths[found][method.as_str().to_lowercase()];
        (!operation.is_null()).then(|| operation.clone())
    }

    /// Submits so many batches and gives their run.
    async fn run_of(&self, batches: usize) -> RunId {
        let run = self
            .submit("?pipeline=hashes", &"{\"payload\":1}\n".repeat(batches))
            .await;
        assert_eq!(run.status, 201, "{run:?}");
        run.body["run"].as_str().unwrap().parse().unwrap()
    }

    async fn batches_of(&self, run: RunId) -> Vec<BatchId> {
        let found = self.ledger.batches(run, None, None, 1_000).await.unwrap();
        found.iter().map(|batch| batch.batch).collect()
    }

    /// Has a run's batches die on their first attempt.
    async fn kill(&self, run: RunId, reason: &str) -> Vec<BatchId> {
        let batches = self.batches_of(run).await;
        let judged: Vec<Judged> = batches
            .iter()
            .map(|batch| Judged {
                batch: *batch,
                attempt: Attempt::new(1),
                worker: Some(Instance::from("w1".to_owned())),
                took: Some(Duration::from_millis(7)),
                verdict: Verdict::Kill {
                    reason: reason.to_owned(),
                    error: "boom".into(),
                },
            })
            .collect();
        let now = jiff::Timestamp::now();
        self.ledger.settle(&judged, now).await.unwrap();
        batches
    }
}

fn api(ledger: &Arc<SqliteLedger>, notices: mpsc::Sender<Notice>) -> Api {
    let pipelines = BTreeMap::from([(
        PipelineName::new("hashes").unwrap(),
        PipelineConfig::default(),
    )]);
    let broker = BrokerConfig {
        // Nobody listens there.
        url: SecretString::from("amqp://guest:guest@127.0.0.1:1/%2f"),
        ..BrokerConfig::default()
    };
    let connector = Connector::new(&broker, &Instance::generate("test"));
    let fleet = Arc::new(Mutex::new(Fleet::default()));
    Api {
        ledger: ledger.clone(),
        operators: ledger.clone(),
        submission: SubmissionStage {
            ledger: ledger.clone(),
            pipelines: pipelines.clone(),
            room: Room::new(10),
            pressure: Arc::new(NoPressure),
            webhooks: Arc::new(NoWebhooks),
            notices: notices.clone(),
        },
        operations: Operations {
            ledger: ledger.clone(),
            views: ledger.clone(),
            notices,
            cancelled: Arc::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
        },
        schedules: Schedules::default(),
        limits: SharedLimits::new(&Config::load(None).unwrap()),
        fleet: fleet.clone(),
        levels: SharedLevels::default(),
        doctor: Doctor {
            config: Config {
                broker,
                pipelines,
                ..Config::default()
            },
            publishing: connector.publishing_pool(),
            connector,
            ledger: ledger.clone(),
            fleet,
            levels: SharedLevels::default(),
        },
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        tokens: Tokens::new(&ApiConfig::default()).unwrap(),
        hosts: Hosts::new(&ApiConfig::default()),
    }
}
