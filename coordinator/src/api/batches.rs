//! Batches: one with everything that is known of it, and the dead ones.

use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::config::Span;
use shared::id::{BatchId, RunId};
use shared::name::{Key, PipelineName};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::extract::{Limit, Name, Named, Nothing, Parameters, Rate};
use super::problem::Problem;
use crate::ledger::DeadFilter;
use crate::operations::Handled;
use crate::run::{BatchDetail, DeadBatch};

/// Which dead batches. Texts all: what is flattened cannot be anything else in a query.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Of this run.
    #[param(value_type = Option<uuid::Uuid>)]
    run: Option<RunId>,
    /// Of this pipeline.
    #[param(value_type = Option<String>)]
    pipeline: Option<PipelineName>,
    /// Of this key.
    #[param(value_type = Option<String>)]
    key: Option<Key>,
    /// With this reason, such as `attempts_exhausted` or `poison`.
    reason: Option<String>,
    /// Only this one.
    #[param(value_type = Option<uuid::Uuid>)]
    batch: Option<BatchId>,
    /// Dead for longer than this, such as `2h`.
    #[param(value_type = Option<String>)]
    older_than: Option<Span>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeadParameters {
    #[serde(flatten)]
    #[param(ignore)]
    which: Which,
    /// How many: 1 to 1,000.
    #[serde(default)]
    #[param(value_type = Option<u32>)]
    limit: Limit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CountParameters {
    #[serde(flatten)]
    which: Which,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RedriveParameters {
    #[serde(flatten)]
    #[param(ignore)]
    which: Which,
    /// All of them. Without it, some filter has to be named.
    #[serde(default)]
    all: bool,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
    /// How many become due a second, 1 to 100,000. Default: all at once.
    #[param(value_type = Option<u32>)]
    rate: Option<Rate>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DiscardParameters {
    #[serde(flatten)]
    #[param(ignore)]
    which: Which,
    /// All of them. Without it, some filter has to be named.
    #[serde(default)]
    all: bool,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
}

/// Dead batches, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Dead {
    dead: Vec<DeadBatch>,
}

/// How many dead batches there are.
#[derive(Serialize, ToSchema)]
pub(super) struct DeadCount {
    count: u64,
}

impl Which {
    fn filter(self) -> DeadFilter {
        let before = |age: Span| {
            Timestamp::now()
                .checked_sub(age.get())
                .unwrap_or(Timestamp::MIN)
        };
        DeadFilter {
            run: self.run,
            pipeline: self.pipeline,
            batch: self.batch,
            key: self.key,
            reason: self.reason,
            before: self.older_than.map(before),
        }
    }

    /// The filter of an operation, which must not reach everything by mistake.
    fn chosen(self, all: bool) -> Result<DeadFilter, Problem> {
        let Self {
            run,
            pipeline,
            key,
            reason,
            batch,
            older_than,
        } = &self;
        let is_named = run.is_some()
            || pipeline.is_some()
            || key.is_some()
            || reason.is_some()
            || batch.is_some()
            || older_than.is_some();
        match (is_named, all) {
            (true, false) | (false, true) => Ok(self.filter()),
            (false, false) => Err(Problem::bad_parameter(
                "name which dead batches (run, pipeline, key, reason, batch, older_than), or all=true",
            )),
            (true, true) => Err(Problem::bad_parameter("all: goes without any other filter")),
        }
    }
}

/// Show a batch
///
/// With its payload, the history of its attempts (who worked on it, when, and what came of it), and who has it now,
/// with its progress if the handler says how far it has come.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{batch}",
    tag = "batches",
    params(("batch" = uuid::Uuid, Path, description = "Its id")),
    responses((status = 200, description = "Everything about it", body = BatchDetail))
)]
pub(super) async fn show_batch(
    State(api): State<Arc<Api>>,
    Name(batch): Name<BatchId>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Result<Json<BatchDetail>, Problem> {
    let found = api.operators.batch(batch).await?;
    let mut detail = found.ok_or_else(|| Problem::not_found(BatchId::UNKNOWN))?;
    let fleet = api.fleet.lock().unwrap_or_else(PoisonError::into_inner);
    detail.in_hand = fleet.in_hand(batch);
    Ok(Json(detail))
}

/// List dead batches, newest first
#[utoipa::path(
    get,
    path = "/api/v1/dead",
    tag = "dead",
    params(Which, DeadParameters),
    responses((status = 200, description = "Some of them", body = Dead))
)]
pub(super) async fn list_dead(
    State(api): State<Arc<Api>>,
    Parameters(DeadParameters { which, limit }): Parameters<DeadParameters>,
) -> Result<Json<Dead>, Problem> {
    let dead = api.ledger.dead(&which.filter(), limit.get()).await?;
    Ok(Json(Dead { dead }))
}

/// Count dead batches
#[utoipa::path(
    get,
    path = "/api/v1/dead/count",
    tag = "dead",
    params(Which),
    responses((status = 200, description = "How many there are", body = DeadCount))
)]
pub(super) async fn count_dead(
    State(api): State<Arc<Api>>,
    Parameters(CountParameters { which }): Parameters<CountParameters>,
) -> Result<Json<DeadCount>, Problem> {
    let count = api.operators.count_dead(&which.filter()).await?;
    Ok(Json(DeadCount { count }))
}

/// Make dead batches pending again
///
/// They start over with all attempts. Those of cancelled runs stay dead.
#[utoipa::path(
    post,
    path = "/api/v1/dead/redrive",
    tag = "dead",
    params(Which, RedriveParameters),
    responses((status = 200, description = "What was done", body = Handled))
)]
pub(super) async fn redrive_dead(
    State(api): State<Arc<Api>>,
    Parameters(parameters): Parameters<RedriveParameters>,
) -> Result<Json<Handled>, Problem> {
    let filter = parameters.which.chosen(parameters.all)?;
    if parameters.dry_run {
        return Ok(Json(api.operations.matching(&filter).await?));
    }
    let rate = parameters.rate.map(Rate::get);
    Ok(Json(api.operations.redrive(filter, rate).await?))
}

/// Call dead batches off for good
///
/// They are cancelled, with reason `discarded`; their runs do not change otherwise.
#[utoipa::path(
    post,
    path = "/api/v1/dead/discard",
    tag = "dead",
    params(Which, DiscardParameters),
    responses((status = 200, description = "What was done", body = Handled))
)]
pub(super) async fn discard_dead(
    State(api): State<Arc<Api>>,
    Parameters(parameters): Parameters<DiscardParameters>,
) -> Result<Json<Handled>, Problem> {
    let filter = parameters.which.chosen(parameters.all)?;
    if parameters.dry_run {
        return Ok(Json(api.operations.matching(&filter).await?));
    }
    Ok(Json(api.operations.discard(filter).await?))
}
