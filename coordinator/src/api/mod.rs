//! The HTTP API under `/api/v1`, for the CLI and for programs. It reads through the ledger's views and
//! changes things through submission and operations alone.
//!
//! [`router`] shows all of it: every path, the role that it needs, what it refuses. [`guard`] and [`access`] say
//! who is let in, [`shared::server`] is how it is served.

mod access;
mod batches;
mod document;
mod extract;
mod fleet;
mod guard;
mod health;
mod limits;
mod problem;
mod runs;
mod schedules;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use shared::config::Role;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::doctor::Doctor;
use crate::ledger::{LedgerViews, OperatorViews};
use crate::levels::SharedLevels;
use crate::limits::SharedLimits;
use crate::operations::Operations;
use crate::presence::SharedFleet;
use crate::schedules::Schedules;
use crate::submission::SubmissionStage;
pub use access::Tokens;
use document::{Description, route};
pub use guard::Hosts;
use problem::{Code, Problem};
pub use shared::server::{Patience, Server};

/// What the routes need.
pub struct Api {
    /// Answers questions.
    pub ledger: Arc<dyn LedgerViews>,
    /// Answers those of operators.
    pub operators: Arc<dyn OperatorViews>,
    /// Takes runs.
    pub submission: SubmissionStage,
    /// Changes what was taken.
    pub operations: Operations,
    /// Knows when they fire.
    pub schedules: Schedules,
    /// Knows how fast services may be called.
    pub limits: SharedLimits,
    /// Knows the workers.
    pub fleet: SharedFleet,
    /// Whether something piles up.
    pub levels: SharedLevels,
    /// Looks at everything.
    pub doctor: Doctor,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Who may do what.
    pub tokens: Tokens,
    /// Under which names it may be called.
    pub hosts: Hosts,
}

/// All routes, and their description.
fn router(api: &Arc<Api>) -> (Router<Arc<Api>>, utoipa::openapi::OpenApi) {
    use Code::{
        Backpressure, BadIdempotencyKey, BadKey, BodyEndedEarly, EmptySubmission,
        IdempotencyConflict, LedgerUnavailable, MalformedLine, NotFound, NulNotAllowed,
        PayloadTooLarge, QueueFull, RunFinished, SubmissionUnderWay, UnknownPipeline,
        UnsupportedMediaType, WebhookNotAllowed,
    };
    const LEDGER: &[Code] = &[LedgerUnavailable];
    const NAMED: &[Code] = &[NotFound, LedgerUnavailable];
    const UNFINISHED: &[Code] = &[NotFound, RunFinished, LedgerUnavailable];
    const SUBMISSION: &[Code] = &[
        BadIdempotencyKey,
        EmptySubmission,
        MalformedLine,
        BodyEndedEarly,
        IdempotencyConflict,
        SubmissionUnderWay,
        PayloadTooLarge,
        UnsupportedMediaType,
        UnknownPipeline,
        NulNotAllowed,
        BadKey,
        WebhookNotAllowed,
        QueueFull,
        LedgerUnavailable,
        Backpressure,
    ];
    let read = |refusals, routes| route(&api.tokens, Role::Read, refusals, routes);
    let submit = |refusals, routes| route(&api.tokens, Role::Submit, refusals, routes);
    let operate = |refusals, routes| route(&api.tokens, Role::Operate, refusals, routes);
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(read(LEDGER, routes!(runs::list_runs)))
        .routes(submit(SUBMISSION, routes!(runs::submit_run)))
        .routes(read(NAMED, routes!(runs::show_run)))
        .routes(read(NAMED, routes!(runs::list_batches)))
        .routes(operate(UNFINISHED, routes!(runs::cancel_run)))
        .routes(operate(UNFINISHED, routes!(runs::pause_run)))
        .routes(operate(UNFINISHED, routes!(runs::resume_run)))
        .routes(operate(UNFINISHED, routes!(runs::prioritize_run)))
        .routes(read(NAMED, routes!(batches::show_batch)))
        .routes(read(LEDGER, routes!(batches::list_dead)))
        .routes(read(LEDGER, routes!(batches::count_dead)))
        .routes(operate(LEDGER, routes!(batches::redrive_dead)))
        .routes(operate(LEDGER, routes!(batches::discard_dead)))
        .routes(read(LEDGER, routes!(fleet::list_pipelines)))
        .routes(operate(NAMED, routes!(fleet::pause_pipeline)))
        .routes(operate(NAMED, routes!(fleet::resume_pipeline)))
        .routes(read(&[], routes!(schedules::list_schedules)))
        .routes(read(&[], routes!(limits::list_limits)))
        .routes(read(&[], routes!(fleet::list_workers)))
        .routes(read(&[], routes!(health::show_levels)))
        .routes(read(&[], routes!(health::doctor)))
        .routes(read(LEDGER, routes!(health::metrics)))
        .routes(read(&[], routes!(document::openapi)))
        .split_for_parts()
}

/// Serves until draining.
pub async fn serve(api: Arc<Api>, server: Server) -> std::io::Result<()> {
    let routes = service(api, server.patience.body);
    shared::server::serve(routes, server).await
}

/// The routes with everything around them. The two probes alone need no token.
fn service(api: Arc<Api>, body_patience: Duration) -> Router {
    let header = |name, value| {
        SetResponseHeaderLayer::if_not_present(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    router(&api)
        .0
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(health::ready))
        .fallback(|| async {
            Problem::not_found("there is nothing here; the API starts at /api/v1")
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(Code::MethodNotAllowed, "this path knows other methods")
        })
        .layer(from_fn_with_state(api.hosts.clone(), guard::guard))
        .layer(RequestBodyTimeoutLayer::new(body_patience))
        .layer(header("x-content-type-options", "nosniff"))
        .layer(header("referrer-policy", "no-referrer"))
        .layer(header("cache-control", "no-store"))
        .with_state(api)
}

#[cfg(test)]
mod tests;
