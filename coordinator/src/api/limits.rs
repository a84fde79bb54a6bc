//! How fast services are called.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::extract::{Nothing, Parameters};
use crate::limits::LimitView;

/// The limits.
#[derive(Serialize, ToSchema)]
pub(super) struct LimitList {
    limits: Vec<LimitView>,
}

/// List the limits
///
/// How fast each key's calls may go now, and until when a service wants none.
#[utoipa::path(
    get,
    path = "/api/v1/limits",
    tag = "limits",
    responses((status = 200, description = "All that are configured, by name and key", body = LimitList))
)]
pub(super) async fn list_limits(
    State(api): State<Arc<Api>>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Json<LimitList> {
    Json(LimitList {
        limits: api.limits.views(),
    })
}
