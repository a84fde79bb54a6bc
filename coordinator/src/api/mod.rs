//! The HTTP API under `/api/v1`, for the CLI and for programs. It reads through the ledger's views and
//! writes through submission alone.

mod problem;
mod routes;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ledger::LedgerViews;
use crate::presence::SharedFleet;
use crate::submission::SubmissionStage;
use problem::Problem;

/// What the routes need.
pub struct Api {
    /// Answers questions.
    pub ledger: Arc<dyn LedgerViews>,
    /// Takes runs.
    pub submission: SubmissionStage,
    /// Knows the workers.
    pub fleet: SharedFleet,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// What callers must send; `None` lets everybody in.
    pub token: Option<SecretString>,
}

/// Serves until draining; requests under way are finished.
pub async fn serve(
    api: Api,
    listener: TcpListener,
    draining: CancellationToken,
) -> std::io::Result<()> {
    let served = axum::serve(listener, router(Arc::new(api)));
    served
        .with_graceful_shutdown(draining.cancelled_owned())
        .await
}

fn router(api: Arc<Api>) -> Router {
    let guarded = Router::new()
        .route("/api/v1/runs", get(routes::runs).post(routes::submit))
        .route("/api/v1/runs/{run}", get(routes::run))
        .route("/api/v1/dead", get(routes::dead))
        .route("/api/v1/workers", get(routes::workers))
        .route("/metrics", get(routes::metrics))
        .route_layer(middleware::from_fn_with_state(api.clone(), authorize));
    Router::new()
        .merge(guarded)
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(routes::ready))
        .fallback(|| async {
            Problem::not_found("there is nothing here; the API starts at /api/v1")
        })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .with_state(api)
}

async fn authorize(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let Some(expected) = &api.token else {
        return Ok(next.run(request).await);
    };
    let sent = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let sent = sent
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    // Comparing hashes takes the same time wherever the tokens differ.
    if blake3::hash(sent.trim().as_bytes())
        == blake3::hash(expected.expose_secret().trim().as_bytes())
    {
        Ok(next.run(request).await)
    } else {
        Err(Problem::unauthorized())
    }
}

#[cfg(test)]
mod tests;
