//! How the coordinator itself does: probes, metrics, levels, the doctor.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::Api;
use super::extract::{Nothing, Parameters};
use super::problem::Problem;
use crate::doctor::Diagnosis;
use crate::levels::LevelsView;

/// Examine the installation
///
/// The coordinator looks at broker, topology, ledger and workers with its own credentials. Takes seconds
/// when something does not answer.
#[utoipa::path(
    get,
    path = "/api/v1/doctor",
    tag = "about",
    responses((status = 200, description = "What it found", body = Diagnosis))
)]
pub(super) async fn doctor(
    State(api): State<Arc<Api>>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Json<Diagnosis> {
    Json(api.doctor.examine().await)
}

/// Show whether something piles up
///
/// What waits for the coordinator, for dispatch and for workers, and for how long. Measured every five seconds.
#[utoipa::path(
    get,
    path = "/api/v1/levels",
    tag = "about",
    responses((status = 200, description = "All levels", body = LevelsView))
)]
pub(super) async fn show_levels(
    State(api): State<Arc<Api>>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Json<LevelsView> {
    Json(api.levels.view())
}

/// Prometheus metrics
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "about",
    responses((status = 200, description = "In Prometheus' text format", body = String))
)]
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
