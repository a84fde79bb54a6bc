//! The routes, each a few lines: read the request, ask, answer.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use shared::id::RunId;
use shared::name::PipelineName;

use super::Api;
use super::problem::Problem;
use crate::fleet::Worker;
use crate::ledger::DeadFilter;
use crate::run::{DeadBatch, Priority, Run, RunState};
use crate::submission::{Accepted, Submission};

/// Entries of a list when the client names no limit, and the most that it gets.
const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1_000;

/// How much, and how long, is read of a submission that was refused already.
const READ_ON_BYTES: usize = 256 * 1024 * 1024;
const READ_ON_TIME: Duration = Duration::from_secs(10);

type Parameters<T> = Result<Query<T>, QueryRejection>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitParameters {
    pipeline: String,
    #[serde(default)]
    priority: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunsParameters {
    limit: Option<u32>,
    state: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadParameters {
    limit: Option<u32>,
    run: Option<String>,
    pipeline: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Runs {
    runs: Vec<Run>,
}

#[derive(Serialize)]
pub(super) struct Dead {
    dead: Vec<DeadBatch>,
}

#[derive(Serialize)]
pub(super) struct Workers {
    workers: Vec<Worker>,
}

pub(super) async fn submit(
    State(api): State<Arc<Api>>,
    parameters: Parameters<SubmitParameters>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Run>), Problem> {
    let Query(SubmitParameters { pipeline, priority }) = read(parameters)?;
    let is_ndjson = |value: &str| {
        let kind = value.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/x-ndjson")
            || kind.eq_ignore_ascii_case("application/ndjson")
    };
    if !text(&headers, &header::CONTENT_TYPE).is_some_and(is_ndjson) {
        return Err(Problem::unsupported_media_type());
    }
    let submission = Submission {
        pipeline,
        priority: word::<Priority>("priority", priority)?.unwrap_or_default(),
        idempotency_key: headers
            .get("idempotency-key")
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
    };
    let mut lines = body.into_data_stream();
    match api.submission.submit(submission, &mut lines).await {
        Ok(Accepted::New(run)) => Ok((StatusCode::CREATED, Json(run))),
        Ok(Accepted::Before(run)) => Ok((StatusCode::OK, Json(run))),
        Err(error) => {
            read_on(lines).await;
            Err(error.into())
        }
    }
}

/// Reads what a refused client is still sending, for a while: one that is cut off in the middle of its
/// request sees a broken connection instead of the answer.
async fn read_on(mut lines: BodyDataStream) {
    let mut left = READ_ON_BYTES;
    let reading = async {
        while let Some(Ok(piece)) = lines.next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(READ_ON_TIME, reading).await;
}

pub(super) async fn runs(
    State(api): State<Arc<Api>>,
    parameters: Parameters<RunsParameters>,
) -> Result<Json<Runs>, Problem> {
    let Query(RunsParameters { limit, state }) = read(parameters)?;
    let state = word::<RunState>("state", state)?;
    Ok(Json(Runs {
        runs: api.ledger.runs(state, checked(limit)?).await?,
    }))
}

pub(super) async fn run(
    State(api): State<Arc<Api>>,
    Path(run): Path<String>,
) -> Result<Json<Run>, Problem> {
    let unknown =
        || Problem::not_found("there is no such run; `tidegate run list` shows those there are");
    let id: RunId = run.parse().map_err(|_| unknown())?;
    api.ledger.run(id).await?.map(Json).ok_or_else(unknown)
}

pub(super) async fn dead(
    State(api): State<Arc<Api>>,
    parameters: Parameters<DeadParameters>,
) -> Result<Json<Dead>, Problem> {
    let Query(DeadParameters {
        limit,
        run,
        pipeline,
    }) = read(parameters)?;
    let pipeline = pipeline.map(|name| PipelineName::new(&name)).transpose();
    let filter = DeadFilter {
        run: word::<RunId>("run", run)?,
        pipeline: pipeline.map_err(|error| Problem::bad_parameter(error.to_string()))?,
        ..DeadFilter::default()
    };
    Ok(Json(Dead {
        dead: api.ledger.dead(&filter, checked(limit)?).await?,
    }))
}

pub(super) async fn workers(State(api): State<Arc<Api>>) -> Json<Workers> {
    let fleet = api.fleet.lock().unwrap_or_else(PoisonError::into_inner);
    Json(Workers {
        workers: fleet.workers(Instant::now()),
    })
}

pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Result<String, Problem> {
    // Figures about batches are taken from the ledger when somebody asks, so they cannot drift from it.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a gauge is a float; backlogs stay far below 2^52"
    )]
    metrics::gauge!("tidegate_backlog_batches").set(api.submission.ledger.backlog().await? as f64);
    Ok(api.metrics.render())
}

/// Ready while the ledger answers. The broker may be away: submissions are taken all the same.
pub(super) async fn ready(State(api): State<Arc<Api>>) -> Result<&'static str, Problem> {
    api.submission.ledger.backlog().await?;
    Ok("ready\n")
}

fn read<T>(parameters: Parameters<T>) -> Result<Query<T>, Problem> {
    parameters.map_err(|rejection| Problem::bad_parameter(rejection.body_text()))
}

fn word<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    value: Option<String>,
) -> Result<Option<T>, Problem> {
    let parsed = value.map(|value| value.parse()).transpose();
    parsed.map_err(|error| Problem::bad_parameter(format!("{name}: {error}")))
}

fn checked(limit: Option<u32>) -> Result<u32, Problem> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        other => Err(Problem::bad_parameter(format!(
            "limit: must be 1 to {MAX_LIMIT}, is {other}"
        ))),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
