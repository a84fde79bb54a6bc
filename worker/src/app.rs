//! The composition root: the one place that names concrete backends and handlers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use shared::broker::{BrokerError, Connector};
use shared::config::{Config, ConfigError, HandlerKind};
use shared::lifecycle::Lifecycle;
use shared::name::Instance;
use shared::probe::NotReady;
use shared::signing::{self, Signing};
use shared::{exit, telemetry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ask::AskStage;
use crate::claim::Claimant;
use crate::commit::Commit;
use crate::consume::ConsumeStage;
use crate::control::{Cancelled, ControlListener};
use crate::handlers::exec::Exec;
use crate::handlers::http::Http;
use crate::handlers::noop::Noop;
use crate::health::{HealthStage, Readiness};
use crate::held::Tally;
use crate::holding::Holding;
use crate::jobs::search_console::store::SearchAnalyticsStore;
use crate::jobs::search_console::{Job, JobError};
use crate::own::{OwnHandlers, OwnHandlersError};
use crate::pace::Pace;
use crate::permits::CoordinatorPermits;
use crate::presence::PresenceStage;
use crate::registry::{AnyHandler, Registry, Served};
use crate::reload::ReloadStage;
use crate::report::Reporter;
use crate::sinks::{DefaultSink, OpenError, Sinks};
use crate::slots::Slots;
use crate::threads::HandlerThreads;

/// Why the worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The program's own handlers do not fit it.
    #[error("configuration: {0}")]
    OwnHandlers(#[from] OwnHandlersError),
    /// The Search Console job cannot be set up.
    #[error("configuration: {0}")]
    SearchConsole(#[from] JobError),
    /// A sink cannot be opened.
    #[error(transparent)]
    Sink(#[from] OpenError),
    /// The address for probes and metrics cannot be had.
    #[error("worker.listen: cannot listen on {address}: {problem}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why not.
        problem: std::io::Error,
    },
    /// Nobody can know where the worker listens that is asked how it is.
    #[error(
        "worker.listen has port 0, any that is free: give it one, such as 127.0.0.1:8421, and the worker can be asked"
    )]
    NoFixedPort,
    /// The worker that was asked is not ready.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The broker refuses us or cannot be reached.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Metrics, threads or signals cannot be set up.
    #[error("start: {0}")]
    Process(#[from] anyhow::Error),
}

impl StartError {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Sink(error) if error.is_unavailable() => exit::UNAVAILABLE,
            Self::Config(_)
            | Self::OwnHandlers(_)
            | Self::SearchConsole(_)
            | Self::Sink(_)
            | Self::NoFixedPort
            | Self::Listen { .. } => exit::CONFIG,
            Self::Broker(error) if error.is_configuration() => exit::CONFIG,
            Self::Broker(_) => exit::UNAVAILABLE,
            Self::NotReady(_) | Self::Process(_) => exit::FAILED,
        }
    }
}

/// Starts everything, runs until a signal, and gives the exit code.
#[expect(clippy::too_many_lines, reason = "one list of what there is, in order")]
pub async fn run(config_file: Option<PathBuf>, own: OwnHandlers) -> Result<u8, StartError> {
    let config = Config::load(config_file.as_deref())?;
    config.warn_of_unprotected();
    own.check(&config.pipelines)?;
    let signing = Signing::open(&config.signing)?;
    let metrics = telemetry::init_metrics()?;
    crate::metrics::describe();
    signing::describe_metrics();
    let address = config.worker.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|problem| StartError::Listen { address, problem })?;
    let lifecycle = Lifecycle::new();
    let default = DefaultSink::open(&config, lifecycle.draining()).await?;
    let cursors = default.cursors();
    if let Err(error) = cursors.forget_old_cursors().await {
        tracing::warn!(%error, "cannot remove old cursors");
    }
    let store = default.store();
    let sinks = default.and_others(&config).await?;
    let registry = registry(&config, store, &sinks, &own)?;
    let worker = Instance::generate("worker");
    let connector = Connector::new(&config.broker, &worker).with_signing(signing.clone());
    // Says early what is wrong with the broker; the stages connect for themselves.
    let connection = connector.connect_at_start("start").await?;
    connector.goodbye(connection).await;

    let threads = HandlerThreads::start(config.worker.threads()).map_err(anyhow::Error::from)?;
    let publishing = connector.publishing_pool();
    let holding = Holding::default();
    let readiness = Readiness::default();
    let leaving = CancellationToken::new();
    let pace = Pace::new(config.worker.look_ahead_bounds());
    let slots = Slots::new(config.worker.slots, pace.clone());
    let (reports, reporter) = Reporter::new(publishing.clone(), worker.clone(), config.lanes);
    let presence = PresenceStage {
        worker: worker.clone(),
        pipelines: registry.names().cloned().collect(),
        slots: slots.clone(),
        lanes: config.lanes,
        holding: holding.clone(),
        publishing: publishing.clone(),
        draining: lifecycle.draining(),
        leaving: leaving.clone(),
    };
    let tls = config.worker.tls()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let health = HealthStage {
        listener,
        tls,
        readiness: readiness.clone(),
        metrics: metrics.clone(),
        leaving: leaving.clone(),
    };
    tracing::info!(
        %worker,
        health = %format!("{scheme}://{}", health.listener.local_addr().unwrap_or(address)),
        broker = %connector.address(),
        sink = %config.sink_url().address(),
        pipelines = %registry.names().map(ToString::to_string).collect::<Vec<_>>().join(","),
        slots = config.worker.slots,
        threads = config.worker.threads(),
        "worker starts"
    );
    let (handlers, stopping) = (registry.clone(), lifecycle.stopping());
    // An abandoned handler could ask for ever.
    let asking = lifecycle.stopping().child_token();
    let (asker, ask) = AskStage::new(connector.clone(), asking.clone());
    let consume = ConsumeStage {
        permits: Arc::new(CoordinatorPermits {
            asker: asker.clone(),
        }),
        claimant: Claimant {
            asker,
            worker: worker.clone(),
            lanes: config.lanes,
        },
        control: ControlListener {
            worker: worker.clone(),
            connector: connector.clone(),
            cancelled: Cancelled::default(),
        },
        connector,
        publishing,
        registry,
        lanes: config.lanes,
        consumer_timeout: config.broker.consumer_timeout.get(),
        pace: pace.clone(),
        slots: slots.clone(),
        threads: threads.clone(),
        holding,
        tally: Tally::default(),
        readiness,
        cursors,
        commit: Commit {
            sinks,
            reports,
            writer: worker,
        },
        draining: lifecycle.draining(),
        stopping: lifecycle.stopping(),
    };
    let reload = ReloadStage::new(
        config_file,
        config.clone(),
        slots,
        pace,
        lifecycle.draining(),
    );
    lifecycle.spawn("reload", reload.map_err(anyhow::Error::from)?.run());
    lifecycle.spawn("health", health.run());
    lifecycle.spawn("signing", signing.keep_fresh(lifecycle.draining()));
    lifecycle.spawn("metrics", telemetry::upkeep(metrics, lifecycle.draining()));
    lifecycle.spawn("presence", presence.run());
    lifecycle.spawn("report", reporter.run());
    lifecycle.spawn("ask", ask.run());
    let watched = threads
        .clone()
        .watch(config.worker.max_abandoned, lifecycle.draining());
    lifecycle.spawn("handlers", watched);
    lifecycle.spawn("consume", async move {
        let consumed = consume.run().await;
        let mut closing = threads.run(async move { handlers.close().await });
        tokio::select! {
            _ = closing.ended() => {}
            () = stopping.cancelled() => {}
        }
        asking.cancel();
        leaving.cancel();
        consumed
    });
    let code = lifecycle
        .run(config.worker.drain_timeout.get())
        .await
        .map_err(anyhow::Error::from)?;
    tracing::info!(code, "worker stopped");
    Ok(code)
}

fn registry(
    config: &Config,
    store: Arc<dyn SearchAnalyticsStore>,
    sinks: &Sinks,
    own: &OwnHandlers,
) -> Result<Registry, StartError> {
    let job = Job::new(&config.search_console, store)?;
    let mut registry = Registry::default();
    for (name, pipeline) in config.served_pipelines() {
        let rows = sinks.form(&pipeline.sink);
        let handler: Arc<dyn AnyHandler> = match pipeline.handler() {
            HandlerKind::Exec => Arc::new(Exec::new(&name, &pipeline, config.worker.slots, rows)?),
            HandlerKind::Http => Arc::new(Http::new(&name, &pipeline, rows)?),
            HandlerKind::Library => own.get(&name)?,
            HandlerKind::Noop => Arc::new(Noop),
            HandlerKind::SearchConsolePlan => Arc::new(job.plan()),
            HandlerKind::SearchConsoleSlice => Arc::new(job.slice()),
        };
        let deadline = pipeline.deadline.get();
        let served = Served::new(&name, handler, deadline, pipeline.sink);
        registry.serve(name, served);
    }
    Ok(registry)
}
