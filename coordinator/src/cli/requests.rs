//! What the coordinator is asked: one function for each question and each order.

use std::time::Duration;

use coordinator::doctor::Diagnosis;
use coordinator::fleet::Worker;
use coordinator::limits::LimitView;
use coordinator::operations::Handled;
use coordinator::run::{BatchDetail, DeadBatch, PipelineView, Priority, Run, RunState};
use coordinator::schedules::ScheduleView;
use reqwest::{Body, Method, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use shared::id::{BatchId, RunId};
use shared::name::PipelineName;

use crate::args::{Chosen, Which};
use crate::client::{ApiError, Client};

/// Longest wait for the answer to a question. Submissions are not limited: stdin may be slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for what looks at, or changes, very much.
const WORK_TIMEOUT: Duration = Duration::from_mins(10);

type Query<'a> = &'a [(&'a str, Option<String>)];

/// How a run is to be made.
#[derive(Debug)]
pub(crate) struct Submission {
    /// Which pipeline does the work.
    pub(crate) pipeline: PipelineName,
    /// Which of a key's runs goes first.
    pub(crate) priority: Priority,
    /// The same key gives the same run.
    pub(crate) idempotency_key: String,
    /// Whom to tell when it has ended.
    pub(crate) webhook: Option<String>,
}

/// What may be done to a run, in one word.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RunOrder {
    Cancel,
    Pause,
    Resume,
    Prioritize(Priority),
}

impl Client {
    /// Submits a run whose batches are streamed. It exists only if this succeeds, or if the connection
    /// broke after the last byte: then the idempotency key tells.
    pub(crate) async fn submit(
        &self,
        submission: &Submission,
        batches: Body,
    ) -> Result<Run, ApiError> {
        let request = self
            .request(Method::POST, &["runs"])
            .query(&[
                ("pipeline", Some(submission.pipeline.as_str())),
                ("priority", Some(submission.priority.as_str())),
                ("webhook", submission.webhook.as_deref()),
            ])
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header("Idempotency-Key", &submission.idempotency_key)
            .body(batches);
        self.answer(request).await
    }

    /// One run.
    pub(crate) async fn run(&self, id: RunId) -> Result<Run, ApiError> {
        self.get(&["runs", &id.to_string()], &[]).await
    }

    /// The newest runs.
    pub(crate) async fn runs(
        &self,
        state: Option<RunState>,
        limit: u32,
    ) -> Result<Vec<Run>, ApiError> {
        #[derive(Deserialize)]
        struct Runs {
            runs: Vec<Run>,
        }
        let query = [
            ("limit", Some(limit.to_string())),
            ("state", state.map(|s| s.to_string())),
        ];
        let Runs { runs } = self.get(&["runs"], &query).await?;
        Ok(runs)
    }

    /// Changes a run, and gives it as it is after that.
    pub(crate) async fn order(&self, id: RunId, order: RunOrder) -> Result<Run, ApiError> {
        let id = id.to_string();
        let (verb, priority) = match order {
            RunOrder::Cancel => ("cancel", None),
            RunOrder::Pause => ("pause", None),
            RunOrder::Resume => ("resume", None),
            RunOrder::Prioritize(priority) => ("priority", Some(priority.to_string())),
        };
        self.post(&["runs", &id, verb], &[("priority", priority)])
            .await
    }

    /// Everything about one batch.
    pub(crate) async fn batch(&self, id: BatchId) -> Result<BatchDetail, ApiError> {
        self.get(&["batches", &id.to_string()], &[]).await
    }

    /// Dead batches, newest first.
    pub(crate) async fn dead(&self, which: &Which, limit: u32) -> Result<Vec<DeadBatch>, ApiError> {
        #[derive(Deserialize)]
        struct Dead {
            dead: Vec<DeadBatch>,
        }
        let mut query = which.query();
        query.push(("limit", Some(limit.to_string())));
        let Dead { dead } = self.get(&["dead"], &query).await?;
        Ok(dead)
    }

    /// Makes dead batches pending again.
    pub(crate) async fn redrive(
        &self,
        chosen: &Chosen,
        rate: Option<u32>,
    ) -> Result<Handled, ApiError> {
        let mut query = chosen.query();
        query.push(("rate", rate.map(|rate| rate.to_string())));
        self.post(&["dead", "redrive"], &query).await
    }

    /// Calls dead batches off.
    pub(crate) async fn discard(&self, chosen: &Chosen) -> Result<Handled, ApiError> {
        self.post(&["dead", "discard"], &chosen.query()).await
    }

    /// The live workers.
    pub(crate) async fn workers(&self) -> Result<Vec<Worker>, ApiError> {
        #[derive(Deserialize)]
        struct Workers {
            workers: Vec<Worker>,
        }
        let Workers { workers } = self.get(&["workers"], &[]).await?;
        Ok(workers)
    }

    /// The pipelines.
    pub(crate) async fn pipelines(&self) -> Result<Vec<PipelineView>, ApiError> {
        #[derive(Deserialize)]
        struct Pipelines {
            pipelines: Vec<PipelineView>,
        }
        let Pipelines { pipelines } = self.get(&["pipelines"], &[]).await?;
        Ok(pipelines)
    }

    /// Pauses a pipeline, or lets it go on.
    pub(crate) async fn pause_pipeline(
        &self,
        pipeline: &PipelineName,
        paused: bool,
    ) -> Result<PipelineView, ApiError> {
        let verb = if paused { "pause" } else { "resume" };
        self.post(&["pipelines", pipeline.as_str(), verb], &[])
            .await
    }

    /// The limits.
    pub(crate) async fn limits(&self) -> Result<Vec<LimitView>, ApiError> {
        #[derive(Deserialize)]
        struct Limits {
            limits: Vec<LimitView>,
        }
        let Limits { limits } = self.get(&["limits"], &[]).await?;
        Ok(limits)
    }

    /// The schedules.
    pub(crate) async fn schedules(&self) -> Result<Vec<ScheduleView>, ApiError> {
        #[derive(Deserialize)]
        struct Schedules {
            schedules: Vec<ScheduleView>,
        }
        let Schedules { schedules } = self.get(&["schedules"], &[]).await?;
        Ok(schedules)
    }

    /// What the coordinator finds when it looks at everything.
    pub(crate) async fn doctor(&self) -> Result<Diagnosis, ApiError> {
        let request = self.request(Method::GET, &["doctor"]).timeout(WORK_TIMEOUT);
        self.answer(request).await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> Result<T, ApiError> {
        let request = self.request(Method::GET, path).query(query);
        self.answer(request.timeout(ANSWER_TIMEOUT)).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> Result<T, ApiError> {
        let request = self.request(Method::POST, path).query(query);
        self.answer(request.timeout(WORK_TIMEOUT)).await
    }
}

impl Which {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("run", self.run.map(|id| id.to_string())),
            ("pipeline", self.pipeline.as_ref().map(ToString::to_string)),
            ("key", self.key.as_ref().map(ToString::to_string)),
            ("reason", self.reason.clone()),
            ("batch", self.batch.map(|id| id.to_string())),
            ("older_than", self.older_than.map(|span| span.to_string())),
        ]
    }
}

impl Chosen {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        let set = |flag: bool| flag.then(|| "true".to_owned());
        let mut query = self.which.query();
        query.extend([("all", set(self.all)), ("dry_run", set(self.dry_run))]);
        query
    }
}
