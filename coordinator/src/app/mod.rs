//! The composition root: the one place that names concrete backends. It binds and connects first, so that
//! a bad port, password or database ends the start, and serves last.

mod ground;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::broker::{BrokerError, Connector};
use shared::config::{Config, ConfigError, DatabaseUrl};
use shared::lifecycle::Lifecycle;
use shared::name::Instance;
use shared::probe::NotReady;
use shared::signing::{self, Signing};
use shared::{exit, telemetry};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::ground::Ground;
use crate::api::{self, Patience, Server};
use crate::consuming::{Consumer, keep_consuming};
use crate::definitions::PasswordError;
use crate::ledger::postgres::PostgresLedger;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{Ledger, LedgerError};
use crate::topology::Topology;
use crate::webhooks::ClientError;

/// Notices that wait for the dispatcher. When it is behind, the stages that tell it wait.
const NOTICES: usize = 256;
/// How long a stopping coordinator waits for requests and groups under way. Nothing is lost when it does
/// not: what is not recorded is published or settled again.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Why the coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The address is taken or not ours.
    #[error("api.listen: cannot listen on {address}: {problem}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The system's words.
        problem: std::io::Error,
    },
    /// The broker refuses us or has another topology.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Webhooks are allowed, but HTTP cannot be spoken.
    #[error(transparent)]
    Webhooks(#[from] ClientError),
    /// A password for the broker's definitions is missing.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The broker's definitions cannot be written.
    #[error("cannot write to {}: {problem}", path.display())]
    Output {
        /// Where to.
        path: PathBuf,
        /// The system's words.
        problem: std::io::Error,
    },
    /// The coordinator that was asked is not ready.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// Metrics or signals cannot be set up.
    #[error("start: {0}")]
    Process(#[from] anyhow::Error),
}

impl StartError {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Ledger(LedgerError::Unavailable(_)) => exit::UNAVAILABLE,
            Self::Config(_)
            | Self::Ledger(_)
            | Self::Listen { .. }
            | Self::Webhooks(_)
            | Self::Password(_)
            // A topology that somebody else owns, and that is not there.
            | Self::Broker(BrokerError::Missing { .. }) => exit::CONFIG,
            Self::Broker(error) if error.is_configuration() => exit::CONFIG,
            Self::Broker(_) => exit::UNAVAILABLE,
            Self::Output { .. } | Self::NotReady(_) | Self::Process(_) => exit::FAILED,
        }
    }
}

/// Starts everything, runs until a signal, and gives the exit code.
pub async fn run(config_file: Option<PathBuf>) -> Result<u8, StartError> {
    let config = Config::load(config_file.as_deref())?;
    config.warn_of_unprotected();
    let metrics = telemetry::init_metrics()?;
    crate::metrics::describe();
    let tls = config.api.tls()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    signing::describe_metrics();
    let signing = Signing::open(&config.signing)?;
    let address = config.api.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|problem| StartError::Listen { address, problem })?;
    let instance = Instance::generate("coordinator");
    let ledger = open_ledger(&config, &instance).await?;
    let connector = Connector::new(&config.broker, &instance).with_signing(signing.clone());
    let topology = Topology::new(&config, connector.clone());
    let connection = connector.connect_at_start("topology").await?;
    topology.ensure_on(&connection).await?;
    connector.goodbye(connection).await;

    let lifecycle = Lifecycle::new();
    let (tell, notices) = mpsc::channel(NOTICES);
    let ground = Ground::new(
        &config, instance, &ledger, &connector, &topology, tell, &lifecycle,
    );
    let (depths, reconcile, levels) = ground.watchers();
    let limits = ground.limits().await?;
    let dispatch = ground.dispatch(notices).await?;
    let (operations, cancel, control) = ground.operations();
    let submission = ground.submission();
    let schedules = ground.schedules(&submission);
    let webhooks = ground.webhooks()?;
    let api = ground.api(
        submission,
        schedules.shown.clone(),
        operations,
        metrics.clone(),
    )?;
    let server = Server {
        listener,
        tls,
        max_connections: config.api.max_connections,
        patience: Patience::default(),
        draining: lifecycle.draining(),
    };

    tracing::info!(
        api = %format!("{scheme}://{}", server.listener.local_addr().unwrap_or(address)),
        broker = %connector.address(),
        ledger = %config.ledger_url().address(),
        pipelines = config.pipelines.len(),
        "coordinator starts"
    );
    consume(&lifecycle, &topology, "presence", ground.presence());
    consume(&lifecycle, &topology, "settlement", ground.settlement());
    consume(&lifecycle, &topology, "dead", ground.dead());
    consume(&lifecycle, &topology, "depths", depths);
    consume(&lifecycle, &topology, "ask", ground.ask());
    lifecycle.spawn("limits", limits.run());
    lifecycle.spawn("reconcile", reconcile.run());
    lifecycle.spawn("levels", levels.run());
    lifecycle.spawn("schedules", schedules.run(config.schedules.clone()));
    lifecycle.spawn("webhooks", webhooks.run());
    lifecycle.spawn("dispatch", dispatch.run(config));
    lifecycle.spawn("cancel", cancel.run());
    lifecycle.spawn("control", control.run());
    lifecycle.spawn("signing", signing.keep_fresh(lifecycle.draining()));
    lifecycle.spawn("api", api::serve(api, server));
    lifecycle.spawn("metrics", telemetry::upkeep(metrics, lifecycle.draining()));
    lifecycle.spawn("ledger", keep_ledger(ledger.clone(), lifecycle.draining()));
    let code = lifecycle
        .run(DRAIN_PATIENCE)
        .await
        .map_err(anyhow::Error::from)?;
    ledger.release().await;
    tracing::info!(code, "coordinator stopped");
    Ok(code)
}

fn consume(
    lifecycle: &Lifecycle,
    topology: &Topology,
    stage: &'static str,
    consumer: impl Consumer,
) {
    let consuming = keep_consuming(stage, consumer, topology.clone(), lifecycle.draining());
    lifecycle.spawn(stage, consuming);
}

async fn open_ledger(config: &Config, instance: &Instance) -> Result<Arc<dyn Ledger>, LedgerError> {
    let url = config.ledger_url();
    Ok(match &url {
        DatabaseUrl::Sqlite(path) => Arc::new(SqliteLedger::open(path).await?),
        DatabaseUrl::Postgres(secret) => {
            let lanes = config.lanes;
            Arc::new(PostgresLedger::open(secret, &url.address(), lanes, instance).await?)
        }
    })
}

/// Ends the process when another one has taken the ledger over: it could only hold on to outcomes that it
/// may not settle.
async fn keep_ledger(
    ledger: Arc<dyn Ledger>,
    draining: CancellationToken,
) -> Result<(), LedgerError> {
    tokio::select! {
        lost = ledger.lost() => Err(lost),
        () = draining.cancelled() => Ok(()),
    }
}
