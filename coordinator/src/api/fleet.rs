//! Who works, and on what: workers and pipelines.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use shared::name::PipelineName;
use utoipa::ToSchema;

use super::Api;
use super::extract::{Name, Named, Nothing, Parameters};
use super::problem::Problem;
use crate::fleet::Worker;
use crate::run::PipelineView;

/// The live workers.
#[derive(Serialize, ToSchema)]
pub(super) struct Workers {
    workers: Vec<Worker>,
}

/// The pipelines.
#[derive(Serialize, ToSchema)]
pub(super) struct Pipelines {
    pipelines: Vec<PipelineView>,
}

/// List the live workers
#[utoipa::path(
    get,
    path = "/api/v1/workers",
    tag = "workers",
    responses((status = 200, description = "Whoever spoke lately", body = Workers))
)]
pub(super) async fn list_workers(
    State(api): State<Arc<Api>>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Json<Workers> {
    let fleet = api.fleet.lock().unwrap_or_else(PoisonError::into_inner);
    Json(Workers {
        workers: fleet.workers(Instant::now()),
    })
}

/// List the pipelines
///
/// Those that are configured, and those of which batches wait although they are not.
#[utoipa::path(
    get,
    path = "/api/v1/pipelines",
    tag = "pipelines",
    responses((status = 200, description = "All of them", body = Pipelines))
)]
pub(super) async fn list_pipelines(
    State(api): State<Arc<Api>>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Result<Json<Pipelines>, Problem> {
    let pipelines = views(&api).await?.into_values().collect();
    Ok(Json(Pipelines { pipelines }))
}

/// Pause a pipeline
///
/// Nothing of it goes out until it is resumed, whatever run it belongs to; what is out is finished.
#[utoipa::path(
    post,
    path = "/api/v1/pipelines/{pipeline}/pause",
    tag = "pipelines",
    params(("pipeline" = String, Path, description = "Its name")),
    responses((status = 200, description = "The pipeline as it is now", body = PipelineView))
)]
pub(super) async fn pause_pipeline(
    State(api): State<Arc<Api>>,
    Name(pipeline): Name<PipelineName>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Result<Json<PipelineView>, Problem> {
    set_paused(&api, &pipeline, true).await
}

/// Let a paused pipeline go on
#[utoipa::path(
    post,
    path = "/api/v1/pipelines/{pipeline}/resume",
    tag = "pipelines",
    params(("pipeline" = String, Path, description = "Its name")),
    responses((status = 200, description = "The pipeline as it is now", body = PipelineView))
)]
pub(super) async fn resume_pipeline(
    State(api): State<Arc<Api>>,
    Name(pipeline): Name<PipelineName>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Result<Json<PipelineView>, Problem> {
    set_paused(&api, &pipeline, false).await
}

async fn set_paused(
    api: &Api,
    pipeline: &PipelineName,
    paused: bool,
) -> Result<Json<PipelineView>, Problem> {
    let unknown = || Problem::not_found(PipelineName::UNKNOWN);
    let mut view = views(api).await?.remove(pipeline).ok_or_else(unknown)?;
    api.operations.pause_pipeline(pipeline, paused).await?;
    view.paused = paused;
    Ok(Json(view))
}

async fn views(api: &Api) -> Result<BTreeMap<PipelineName, PipelineView>, Problem> {
    let paused = api.operations.ledger.paused_pipelines().await?;
    let slots = {
        let fleet = api.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.slots()
    };
    let configured = &api.submission.pipelines;
    let view = |pipeline: &PipelineName| {
        let slots = slots.get(pipeline).copied().unwrap_or_default();
        let config = configured.get(pipeline);
        PipelineView {
            pipeline: pipeline.clone(),
            configured: config.is_some(),
            paused: paused.contains(pipeline),
            pending: 0,
            out: 0,
            slots,
            window: config.map_or(0, |config| config.window(slots)),
        }
    };
    let mut views: BTreeMap<_, _> = configured
        .keys()
        .map(|name| (name.clone(), view(name)))
        .collect();
    for counts in api.operators.pipelines().await? {
        let entry = views
            .entry(counts.pipeline)
            .or_insert_with_key(|name| view(name));
        entry.pending = counts.pending;
        entry.out = counts.out;
    }
    Ok(views)
}
