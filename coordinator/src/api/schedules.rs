//! What submits itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::extract::{Nothing, Parameters};
use crate::schedules::ScheduleView;

/// The schedules.
#[derive(Serialize, ToSchema)]
pub(super) struct ScheduleList {
    schedules: Vec<ScheduleView>,
}

/// List the schedules
///
/// When each fires next, and which run it submitted last.
#[utoipa::path(
    get,
    path = "/api/v1/schedules",
    tag = "schedules",
    responses((status = 200, description = "All that are configured, by name", body = ScheduleList))
)]
pub(super) async fn list_schedules(
    State(api): State<Arc<Api>>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Json<ScheduleList> {
    Json(ScheduleList {
        schedules: api.schedules.views(Timestamp::now()),
    })
}
