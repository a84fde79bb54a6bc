//! The coordinator's HTTP API, as tests use it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use coordinator::fleet::Worker;
use coordinator::levels::LevelsView;
use coordinator::run::{BatchDetail, DeadBatch, Run};
use coordinator::schedules::ScheduleView;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Certificate, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::id::{BatchId, RunId};

use crate::certificates::Authority;
use crate::wait;

/// Longest wait for any answer: a coordinator under test may be busy with a large submission.
const ANSWER_LIMIT: Duration = Duration::from_mins(2);

/// Speaks to one coordinator.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    http: reqwest::Client,
}

impl Api {
    /// For the coordinator at `http://…`.
    pub fn new(base: &str) -> Result<Self> {
        Self::with(base, [], HeaderMap::new())
    }

    /// The same, for one that wants a token.
    pub fn with_token(base: &str, token: &str) -> Result<Self> {
        let bearer = HeaderValue::from_str(&format!("Bearer {token}"))?;
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, bearer)]);
        Self::with(base, [], headers)
    }

    /// For one at `https://…`, whose certificate a CA has signed.
    pub fn over_tls(base: &str, ca: &Authority) -> Result<Self> {
        let ca = Certificate::from_pem(ca.pem().as_bytes())?;
        Self::with(base, [ca], HeaderMap::new())
    }

    fn with(
        base: &str,
        trusted: impl IntoIterator<Item = Certificate>,
        headers: HeaderMap,
    ) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only(trusted)
            .timeout(ANSWER_LIMIT)
            .default_headers(headers)
            .build()?;
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            http,
        })
    }

    /// Where it is, for `TIDEGATE_URL`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Whether the coordinator serves and has its broker.
    pub async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("{}/readyz", self.base)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Submits NDJSON lines of `{"key":…,"payload":…}`.
    pub async fn submit(&self, pipeline: &str, ndjson: String) -> Result<Run> {
        let answer = self.submit_raw(pipeline, ndjson).await?;
        if answer.status() != StatusCode::CREATED {
            bail!(
                "the submission was answered with {}: {}",
                answer.status(),
                answer.text().await?
            );
        }
        answer.json().await.context("reading the run")
    }

    /// Submits anything, and returns whatever is answered.
    pub async fn submit_raw(
        &self,
        pipeline: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Response> {
        self.http
            .post(format!("{}/api/v1/runs", self.base))
            .query(&[("pipeline", pipeline)])
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(body)
            .send()
            .await
            .context("submitting")
    }

    /// Submits under an idempotency key; the same key gives the same run.
    pub async fn submit_once(&self, pipeline: &str, key: &str, ndjson: String) -> Result<Run> {
        let answer = self
            .http
            .post(format!("{}/api/v1/runs", self.base))
            .query(&[("pipeline", pipeline)])
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header("idempotency-key", key)
            .body(ndjson)
            .send()
            .await
            .context("submitting")?;
        let answer = answer.error_for_status()?;
        answer.json().await.context("reading the run")
    }

    /// Submits NDJSON lines, and has somebody told when the run has finished.
    pub async fn submit_with_webhook(
        &self,
        pipeline: &str,
        webhook: &str,
        ndjson: String,
    ) -> Result<Run> {
        let submitting = self
            .http
            .post(format!("{}/api/v1/runs", self.base))
            .query(&[("pipeline", pipeline), ("webhook", webhook)])
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(ndjson);
        let answer = submitting.send().await?.error_for_status()?;
        answer.json().await.context("reading the run")
    }

    /// The schedules.
    pub async fn schedules(&self) -> Result<Vec<ScheduleView>> {
        #[derive(Deserialize)]
        struct Schedules {
            schedules: Vec<ScheduleView>,
        }
        Ok(self.get::<Schedules>("api/v1/schedules").await?.schedules)
    }

    /// One run.
    pub async fn run(&self, id: RunId) -> Result<Run> {
        self.get(&format!("api/v1/runs/{id}")).await
    }

    /// All runs.
    pub async fn runs(&self) -> Result<Vec<Run>> {
        #[derive(Deserialize)]
        struct Runs {
            runs: Vec<Run>,
        }
        Ok(self.get::<Runs>("api/v1/runs").await?.runs)
    }

    /// Cancels a run.
    pub async fn cancel(&self, run: RunId) -> Result<()> {
        let path = format!("{}/api/v1/runs/{run}/cancel", self.base);
        let answer = self.http.post(path).send().await?;
        answer.error_for_status().context("cancelling")?;
        Ok(())
    }

    /// Whether something piles up.
    pub async fn levels(&self) -> Result<LevelsView> {
        self.get("api/v1/levels").await
    }

    /// The dead batches of a run.
    pub async fn dead(&self, run: RunId) -> Result<Vec<DeadBatch>> {
        #[derive(Deserialize)]
        struct Dead {
            dead: Vec<DeadBatch>,
        }
        Ok(self
            .get::<Dead>(&format!("api/v1/dead?run={run}"))
            .await?
            .dead)
    }

    /// One batch.
    pub async fn batch(&self, id: BatchId) -> Result<BatchDetail> {
        self.get(&format!("api/v1/batches/{id}")).await
    }

    /// The live workers.
    pub async fn workers(&self) -> Result<Vec<Worker>> {
        #[derive(Deserialize)]
        struct Workers {
            workers: Vec<Worker>,
        }
        Ok(self.get::<Workers>("api/v1/workers").await?.workers)
    }

    /// Waits until a run satisfies a condition. A coordinator that is away meanwhile is waited for.
    pub async fn wait_for_run(
        &self,
        id: RunId,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Run) -> bool,
    ) -> Result<Run> {
        let mut last = None;
        let waited = wait::until(what, limit, async || {
            let run = self.run(id).await.ok();
            last.clone_from(&run);
            Ok(run.filter(|run| condition(run)))
        });
        waited
            .await
            .with_context(|| format!("the run was last seen as {last:?}"))
    }

    /// Waits until nothing of a run is pending or out.
    pub async fn wait_until_ended(&self, id: RunId, limit: Duration) -> Result<Run> {
        let what = format!("run {id} to end");
        self.wait_for_run(id, &what, limit, Run::has_ended).await
    }

    /// The sum of a metric over its labels; nothing if it was never counted.
    pub async fn metric(&self, name: &str) -> Result<Option<f64>> {
        self.metric_with(name, &[]).await
    }

    /// The same, over the samples that carry all of these `name="value"` labels.
    pub async fn metric_with(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        metric(&self.http, &self.base, name, labels).await
    }

    async fn get<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T> {
        let answer = self
            .http
            .get(format!("{}/{path}", self.base))
            .send()
            .await?;
        let status = answer.status();
        if !status.is_success() {
            bail!(
                "{path} was answered with {status}: {}",
                answer.text().await?
            );
        }
        answer
            .json()
            .await
            .with_context(|| format!("reading {path}"))
    }
}

/// The sum of those samples of a metric that carry all of these `name="value"` labels.
pub async fn metric(
    http: &reqwest::Client,
    base: &str,
    name: &str,
    labels: &[&str],
) -> Result<Option<f64>> {
    let text = http
        .get(format!("{base}/metrics"))
        .send()
        .await?
        .error_for_status()?
        .text()
        .await?;
    let mut sum = None;
    for line in text.lines() {
        let Some(rest) = line
            .strip_prefix(name)
            .filter(|rest| rest.starts_with(['{', ' ']))
        else {
            continue;
        };
        if labels.iter().all(|label| rest.contains(label)) {
            let value: f64 = rest.rsplit(' ').next().context("a value")?.parse()?;
            sum = Some(sum.unwrap_or_default() + value);
        }
    }
    Ok(sum)
}

/// One line of a submission.
#[must_use]
pub fn line(key: &str, payload: &Value) -> String {
    format!("{}\n", json!({ "key": key, "payload": payload }))
}
