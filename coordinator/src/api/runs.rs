//! Runs: submitting them, looking at them, and what operators do to them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use shared::id::{BatchId, RunId};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::extract::{Limit, Name, Named, Nothing, Parameters};
use super::problem::{Code, Problem};
use crate::run::{BatchState, BatchSummary, Priority, Run, RunState};
use crate::submission::{Accepted, Submission};

/// How much, and how long, is read of a submission that was refused already.
const READ_ON_BYTES: usize = 256 * 1024 * 1024;
const READ_ON_TIME: Duration = Duration::from_secs(10);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SubmitParameters {
    /// The pipeline of all batches.
    pipeline: String,
    /// Which of a key's runs goes first.
    #[serde(default)]
    priority: Priority,
    /// Whom to tell when the run has finished: an address of an allowed host.
    webhook: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RunsParameters {
    /// How many: 1 to 1,000.
    #[serde(default)]
    #[param(value_type = Option<u32>)]
    limit: Limit,
    /// Only those in this state.
    state: Option<RunState>,
    /// Only those older than this one: `next` of the answer before.
    #[param(value_type = Option<uuid::Uuid>)]
    before: Option<RunId>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BatchesParameters {
    /// How many: 1 to 1,000.
    #[serde(default)]
    #[param(value_type = Option<u32>)]
    limit: Limit,
    /// Only those in this state.
    state: Option<BatchState>,
    /// Only those after this one: `next` of the answer before.
    #[param(value_type = Option<uuid::Uuid>)]
    after: Option<BatchId>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PriorityParameters {
    /// Which of a key's runs goes first.
    priority: Priority,
}

/// Runs, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Runs {
    runs: Vec<Run>,
    /// Send it as `before` to get the following ones; absent when these are the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    next: Option<RunId>,
}

/// Batches in the order of their submission.
#[derive(Serialize, ToSchema)]
pub(super) struct Batches {
    batches: Vec<BatchSummary>,
    /// Send it as `after` to get the following ones; absent when these are the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    next: Option<BatchId>,
}

/// Submit a run
///
/// The body is NDJSON, one batch a line: `{"key": "…", "payload": …}`; `key` may be left out. The run is
/// taken whole or not at all. Sending it again with the same `Idempotency-Key` and the same content gives the
/// same run.
#[utoipa::path(
    post,
    path = "/api/v1/runs",
    tag = "runs",
    params(
        SubmitParameters,
        ("Idempotency-Key" = Option<String>, Header, description = "The client's name for this submission: 1 to 255 visible ASCII characters")
    ),
    request_body(content = String, content_type = "application/x-ndjson"),
    responses(
        (status = 201, description = "A new run", body = Run),
        (status = 200, description = "The run that this idempotency key and these lines gave before", body = Run)
    )
)]
pub(super) async fn submit_run(
    State(api): State<Arc<Api>>,
    Parameters(parameters): Parameters<SubmitParameters>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Run>), Problem> {
    if !is_ndjson(&headers) {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "send NDJSON: Content-Type: application/x-ndjson, one batch a line",
        ));
    }
    let submission = Submission {
        pipeline: parameters.pipeline,
        priority: parameters.priority,
        idempotency_key: headers
            .get("idempotency-key")
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
        webhook: parameters.webhook,
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

fn is_ndjson(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim();
    kind.eq_ignore_ascii_case("application/x-ndjson")
        || kind.eq_ignore_ascii_case("application/ndjson")
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

/// List runs, newest first
#[utoipa::path(
    get,
    path = "/api/v1/runs",
    tag = "runs",
    params(RunsParameters),
    responses((status = 200, description = "Some runs", body = Runs))
)]
pub(super) async fn list_runs(
    State(api): State<Arc<Api>>,
    Parameters(parameters): Parameters<RunsParameters>,
) -> Result<Json<Runs>, Problem> {
    let limit = parameters.limit.get();
    let runs = api
        .ledger
        .runs(parameters.state, parameters.before, limit)
        .await?;
    let next = full(&runs, limit).map(|last| last.run);
    Ok(Json(Runs { runs, next }))
}

/// Show a run
#[utoipa::path(
    get,
    path = "/api/v1/runs/{run}",
    tag = "runs",
    params(("run" = uuid::Uuid, Path, description = "Its id")),
    responses((status = 200, description = "The run as it is now", body = Run))
)]
pub(super) async fn show_run(
    State(api): State<Arc<Api>>,
    Name(run): Name<RunId>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Result<Json<Run>, Problem> {
    known(&api, run).await.map(Json)
}

/// List a run's batches
#[utoipa::path(
    get,
    path = "/api/v1/runs/{run}/batches",
    tag = "runs",
    params(("run" = uuid::Uuid, Path, description = "Its id"), BatchesParameters),
    responses((status = 200, description = "Some of its batches", body = Batches))
)]
pub(super) async fn list_batches(
    State(api): State<Arc<Api>>,
    Name(run): Name<RunId>,
    Parameters(parameters): Parameters<BatchesParameters>,
) -> Result<Json<Batches>, Problem> {
    known(&api, run).await?;
    let limit = parameters.limit.get();
    let batches = api
        .operators
        .batches(run, parameters.state, parameters.after, limit)
        .await?;
    let next = full(&batches, limit).map(|last| last.batch);
    Ok(Json(Batches { batches, next }))
}

/// Cancel a run
///
/// Nothing more of it goes out from now on; its pending batches are cancelled soon after. A batch that is
/// out becomes what its outcome says. Cancelling a cancelled run changes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/runs/{run}/cancel",
    tag = "runs",
    params(("run" = uuid::Uuid, Path, description = "Its id")),
    responses((status = 200, description = "The run as it is now", body = Run))
)]
pub(super) async fn cancel_run(
    State(api): State<Arc<Api>>,
    Name(run): Name<RunId>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Result<Json<Run>, Problem> {
    Ok(Json(api.operations.cancel(run).await?))
}

/// Pause a run
///
/// Nothing more of it goes out until it is resumed; what is out is finished.
#[utoipa::path(
    post,
    path = "/api/v1/runs/{run}/pause",
    tag = "runs",
    params(("run" = uuid::Uuid, Path, description = "Its id")),
    responses((status = 200, description = "The run as it is now", body = Run))
)]
pub(super) async fn pause_run(
    State(api): State<Arc<Api>>,
    Name(run): Name<RunId>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Result<Json<Run>, Problem> {
    Ok(Json(api.operations.pause(run).await?))
}

/// Let a paused run go on
#[utoipa::path(
    post,
    path = "/api/v1/runs/{run}/resume",
    tag = "runs",
    params(("run" = uuid::Uuid, Path, description = "Its id")),
    responses((status = 200, description = "The run as it is now", body = Run))
)]
pub(super) async fn resume_run(
    State(api): State<Arc<Api>>,
    Name(run): Name<RunId>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Result<Json<Run>, Problem> {
    Ok(Json(api.operations.resume(run).await?))
}

/// Change a run's priority
#[utoipa::path(
    post,
    path = "/api/v1/runs/{run}/priority",
    tag = "runs",
    params(("run" = uuid::Uuid, Path, description = "Its id"), PriorityParameters),
    responses((status = 200, description = "The run as it is now", body = Run))
)]
pub(super) async fn prioritize_run(
    State(api): State<Arc<Api>>,
    Name(run): Name<RunId>,
    Parameters(PriorityParameters { priority }): Parameters<PriorityParameters>,
) -> Result<Json<Run>, Problem> {
    Ok(Json(api.operations.prioritize(run, priority).await?))
}

async fn known(api: &Api, run: RunId) -> Result<Run, Problem> {
    let found = api.ledger.run(run).await?;
    found.ok_or_else(|| Problem::not_found(RunId::UNKNOWN))
}

/// The last entry of a list that is as long as was asked for, so that more may follow.
fn full<T>(entries: &[T], limit: u32) -> Option<&T> {
    let is_full = u32::try_from(entries.len()).is_ok_and(|len| len >= limit);
    entries.last().filter(|_| is_full)
}
