//! What this worker says about itself over HTTP, to whoever watches over it: `/healthz`, `/readyz`, `/metrics`.
//! Served beside the AMQP side, so that no handler can silence it, and until the last batch is settled.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use shared::server::{Patience, Server, serve};
use shared::tls::ServerTls;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Most connections at a time: probes and scrapes are few and short.
const MAX_CONNECTIONS: u32 = 64;

/// Whether batches come in, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The consumers of all queues are open.
    Consuming,
    /// It connects to the broker, for the first time or again.
    Connecting,
    /// It waits until the sink answers.
    SinkAway,
    /// It waits until a coordinator answers.
    CoordinatorAway,
    /// It was asked to stop.
    Draining,
}

impl Standing {
    fn describe(self) -> &'static str {
        match self {
            Self::Consuming => "consuming",
            Self::Connecting => "not ready: connecting to the broker",
            Self::SinkAway => "not ready: the sink is away",
            Self::CoordinatorAway => "not ready: no coordinator gives leave for calls",
            Self::Draining => "not ready: draining",
        }
    }
}

/// Where the worker stands; cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<watch::Sender<Standing>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Standing::Connecting)))
    }
}

impl Readiness {
    /// It stands so from now on.
    pub fn set(&self, standing: Standing) {
        self.0.send_replace(standing);
        metrics::gauge!("tidegate_consuming").set(u8::from(standing == Standing::Consuming));
    }

    /// Where it stands.
    #[must_use]
    pub fn get(&self) -> Standing {
        *self.0.borrow()
    }
}

/// Answers probes and scrapes.
pub struct HealthStage {
    /// Bound already.
    pub listener: TcpListener,
    /// `None`: plain HTTP.
    pub tls: Option<ServerTls>,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// When everything else has ended.
    pub leaving: CancellationToken,
}

impl HealthStage {
    /// Answers until `leaving`.
    pub async fn run(self) -> std::io::Result<()> {
        let routes = routes(self.readiness, self.metrics);
        let server = Server {
            listener: self.listener,
            tls: self.tls,
            max_connections: MAX_CONNECTIONS,
            patience: Patience::default(),
            draining: self.leaving,
        };
        serve(routes, server).await
    }
}

fn routes(readiness: Readiness, metrics: PrometheusHandle) -> Router {
    let ready = move || {
        let standing = readiness.get();
        let status = match standing {
            Standing::Consuming => StatusCode::OK,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let answer = (status, format!("{}\n", standing.describe()));
        std::future::ready(Ok::<_, Infallible>(answer))
    };
    let metrics = move || std::future::ready(metrics.render());
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}
