//! The API as `tidegate` uses it, with answers that the test chooses and a record of what was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use coordinator::doctor::{Check, Diagnosis, Finding};
use coordinator::fleet::InHand;
use coordinator::fleet::Worker;
use coordinator::operations::Handled;
use coordinator::run::{
    AttemptRecord, BatchCounts, BatchDetail, BatchState, DeadBatch, PipelineView, Priority, Run,
    RunState,
};
use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::id::{BatchId, RunId};
use shared::name::{Instance, Key, PipelineName};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// A coordinator of a page.
pub(crate) struct Fake {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<Record>,
    changed: Notify,
}

#[derive(Default)]
struct Record {
    requests: usize,
    authorizations: Vec<String>,
    last_query: String,
    /// Method, path and query.
    last_request: String,
    submissions: Vec<Submission>,
    broken_submissions: usize,
    questions: usize,
    refusal: Option<(StatusCode, String)>,
    run_answers: VecDeque<RunAnswer>,
    runs: Vec<Run>,
    dead: Vec<DeadBatch>,
    workers: Vec<Worker>,
    finding: Option<Finding>,
}

/// A submission whose body came in whole.
#[derive(Clone)]
pub(crate) struct Submission {
    pub(crate) query: String,
    pub(crate) idempotency_key: String,
    pub(crate) batches: Vec<Value>,
}

/// What `GET /runs/{id}` answers next. The last one stays.
#[derive(Clone)]
pub(crate) enum RunAnswer {
    Is(Box<Run>),
    /// The connection breaks, as when the coordinator dies.
    Breaks,
    /// 503.
    Busy,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let api = Router::new()
            .route("/api/v1/runs", get(runs).post(submit))
            .route("/api/v1/runs/{id}", get(one_run))
            .route("/api/v1/dead", get(dead))
            .route("/api/v1/workers", get(workers))
            .route("/api/v1/runs/{id}/{order}", post(order))
            .route("/api/v1/batches/{id}", get(batch))
            .route("/api/v1/dead/{order}", post(handled))
            .route("/api/v1/pipelines", get(pipelines))
            .route("/api/v1/pipelines/{name}/{order}", post(one_pipeline))
            .route("/api/v1/schedules", get(schedules))
            .route("/api/v1/limits", get(limits))
            .route("/api/v1/doctor", get(doctor))
            .layer(axum::middleware::from_fn_with_state(shared.clone(), record))
            .with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, api).await });
        Self { url, shared }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// An address at which nobody listens any more.
    pub(crate) async fn stopped_url(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    }

    /// Answers everything like this from now on.
    pub(crate) fn refuse(&self, status: u16, body: impl Into<String>) {
        self.lock().refusal = Some((StatusCode::from_u16(status).unwrap(), body.into()));
    }

    /// Has so many runs, dead batches and workers to list.
    pub(crate) fn has(&self, runs: usize, dead: usize, workers: usize) {
        let mut record = self.lock();
        record.runs = std::iter::repeat_with(run).take(runs).collect();
        record.dead = std::iter::repeat_with(dead_batch).take(dead).collect();
        record.workers = std::iter::repeat_with(worker).take(workers).collect();
    }

    /// Answers questions about a run with these, one after another.
    pub(crate) fn answers(&self, answers: impl IntoIterator<Item = RunAnswer>) {
        self.lock().run_answers = answers.into_iter().collect();
    }

    pub(crate) fn requests(&self) -> usize {
        self.lock().requests
    }

    pub(crate) fn authorizations(&self) -> Vec<String> {
        self.lock().authorizations.clone()
    }

    /// Has a doctor who finds this.
    pub(crate) fn finds(&self, finding: Finding) {
        self.lock().finding = Some(finding);
    }

    pub(crate) fn last_request(&self) -> String {
        self.lock().last_request.clone()
    }

    pub(crate) fn last_query(&self) -> String {
        self.lock().last_query.clone()
    }

    pub(crate) fn submissions(&self) -> Vec<Submission> {
        self.lock().submissions.clone()
    }

    /// Waits until so many questions about a run were asked.
    pub(crate) async fn asked_about_a_run(&self, times: usize) {
        self.until(|record| record.questions >= times).await;
    }

    /// Waits until a submission broke off.
    pub(crate) async fn submission_broke_off(&self) {
        self.until(|record| record.broken_submissions > 0).await;
    }

    async fn until(&self, reached: impl Fn(&Record) -> bool) {
        loop {
            let changed = self.shared.changed.notified();
            if reached(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.shared.state.lock().unwrap()
    }
}

async fn record(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: axum::middleware::Next,
) -> Response {
    let refusal = {
        let mut record = shared.state.lock().unwrap();
        record.requests += 1;
        request
            .uri()
            .query()
            .unwrap_or_default()
            .clone_into(&mut record.last_query);
        record.last_request = format!("{} {}", request.method(), request.uri());
        if let Some(value) = request.headers().get(header::AUTHORIZATION) {
            record
                .authorizations
                .push(value.to_str().unwrap().to_owned());
        }
        record.refusal.clone()
    };
    match refusal {
        Some(refusal) => {
            // An answer before the end of the request may be lost: the connection is reset, the client sees that.
            let _ = to_bytes(request.into_body(), usize::MAX).await;
            refusal.into_response()
        }
        None => next.run(request).await,
    }
}

async fn submit(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        shared.state.lock().unwrap().broken_submissions += 1;
        shared.changed.notify_one();
        return StatusCode::BAD_REQUEST.into_response();
    };
    assert_eq!(head.headers[header::CONTENT_TYPE], "application/x-ndjson");
    let lines = std::str::from_utf8(&body).unwrap().lines();
    let submission = Submission {
        query: head.uri.query().unwrap_or_default().to_owned(),
        idempotency_key: head.headers["idempotency-key"].to_str().unwrap().to_owned(),
        batches: lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    };
    let mut run = run();
    run.batches.accepted = submission.batches.len() as u64;
    run.batches.pending = run.batches.accepted;
    shared.state.lock().unwrap().submissions.push(submission);
    (StatusCode::CREATED, Json(run)).into_response()
}

async fn one_run(State(shared): State<Arc<Shared>>) -> Response {
    let answer = {
        let mut record = shared.state.lock().unwrap();
        record.questions += 1;
        let next = record
            .run_answers
            .pop_front()
            .expect("the test gave an answer");
        if record.run_answers.is_empty() {
            record.run_answers.push_back(next.clone());
        }
        next
    };
    shared.changed.notify_one();
    match answer {
        RunAnswer::Is(run) => Json(run).into_response(),
        RunAnswer::Busy => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        RunAnswer::Breaks => {
            let broken = [Ok("{\"run\":"), Err(std::io::Error::other("dying"))];
            Body::from_stream(stream::iter(broken)).into_response()
        }
    }
}

async fn runs(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "runs": shared.state.lock().unwrap().runs }))
}

async fn dead(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "dead": shared.state.lock().unwrap().dead }))
}

async fn workers(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "workers": shared.state.lock().unwrap().workers }))
}

async fn order() -> Json<Run> {
    Json(Run {
        state: RunState::Paused,
        ..run()
    })
}

async fn batch() -> Json<BatchDetail> {
    Json(BatchDetail {
        batch: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("hashes").unwrap(),
        key: Key::default(),
        state: BatchState::Dead,
        attempts: 1,
        failures: 1,
        since: Timestamp::UNIX_EPOCH,
        reason: Some("poison".into()),
        error: Some("it broke".into()),
        payload: serde_json::value::to_raw_value(&json!({"n": 1})).unwrap(),
        history: vec![AttemptRecord {
            attempt: 1,
            worker: Some(Instance::from("worker-7".to_owned())),
            out_at: None,
            settled_at: Timestamp::UNIX_EPOCH,
            took_ms: Some(42),
            verdict: "poison".into(),
            error: Some("it \u{1b}[31mbroke".into()),
        }],
        in_hand: Some(InHand {
            worker: Instance::from("worker-8".to_owned()),
            done: Some(3),
            total: Some(7),
        }),
    })
}

async fn handled(request: Request) -> Json<Handled> {
    let query = request.uri().query().unwrap_or_default();
    Json(Handled {
        batches: 1_200,
        dry_run: query.contains("dry_run=true"),
        interrupted: false,
    })
}

async fn pipelines() -> Json<Value> {
    Json(json!({ "pipelines": [pipeline(false)] }))
}

async fn schedules() -> Json<Value> {
    let schedule = json!({
        "schedule": "nightly", "cron": "0 3 * * *", "timezone": "America/Los_Angeles",
        "pipeline": "gsc.plan", "enabled": true, "next": "2026-01-02T11:00:00Z"
    });
    Json(json!({ "schedules": [schedule] }))
}

async fn limits() -> Json<Value> {
    let limit = json!({
        "limit": "gsc.site", "key": "sc-domain:example.com", "rate_per_minute": 300.0, "max_per_minute": 1182.0,
        "waiting": 2, "parked_until": "2026-01-02T08:00:00Z", "granted": 7, "parked": 1, "throttled": 0
    });
    Json(json!({ "limits": [limit] }))
}

async fn one_pipeline() -> Json<PipelineView> {
    Json(pipeline(true))
}

fn pipeline(paused: bool) -> PipelineView {
    PipelineView {
        pipeline: PipelineName::new("hashes").unwrap(),
        configured: true,
        paused,
        pending: 7,
        out: 3,
        slots: 16,
        window: 64,
    }
}

async fn doctor(State(shared): State<Arc<Shared>>) -> Json<Diagnosis> {
    let finding = shared.state.lock().unwrap().finding.unwrap_or(Finding::Ok);
    let checks = vec![
        Check {
            name: "ledger".into(),
            finding: Finding::Ok,
            detail: "answered".into(),
            advice: None,
        },
        Check {
            name: "broker".into(),
            finding,
            detail: "cannot be reached".into(),
            advice: Some("start it".into()),
        },
    ];
    Json(Diagnosis { finding, checks })
}

/// A run of which nothing has happened yet.
pub(crate) fn run() -> Run {
    Run {
        run: RunId::generate(),
        pipeline: PipelineName::new("hashes").unwrap(),
        state: RunState::Running,
        priority: Priority::Normal,
        batches: BatchCounts::default(),
        retries: 0,
        rows: 0,
        statistics: [("api_calls".to_owned(), 7)].into(),
        created_at: Timestamp::UNIX_EPOCH,
        finished_at: None,
    }
}

fn dead_batch() -> DeadBatch {
    DeadBatch {
        batch: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("hashes").unwrap(),
        key: Key::default(),
        reason: "attempts_exhausted".into(),
        error: "\u{1b}[31mit broke\nbadly".into(),
        attempts: 5,
        died_at: Timestamp::UNIX_EPOCH,
    }
}

fn worker() -> Worker {
    Worker {
        worker: Instance::generate("worker"),
        version: "0.1.0".into(),
        pipelines: vec![PipelineName::new("hashes").unwrap()],
        slots: 16,
        holding: vec![],
        draining: false,
        seen_ms_ago: 12,
        lanes: Some(2),
        memory_bytes: Some(21 << 20),
        clock_skew_ms: Some(-3),
    }
}
