//! The composition root: the one place that names concrete backends. It binds and connects first, so that
//! a bad port, password or database ends the start, and serves last.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use shared::broker::{BrokerError, Connector};
use shared::config::{Config, ConfigError, DatabaseUrl};
use shared::lifecycle::Lifecycle;
use shared::name::Instance;
use shared::{exit, telemetry};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::api::{self, Api};
use crate::ask::AskStage;
use crate::claims::Suspects;
use crate::consuming::keep_consuming;
use crate::dead::DeadStage;
use crate::depths::DepthsStage;
use crate::dispatch::DispatchStage;
use crate::fleet::Fleet;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{Ledger, LedgerError};
use crate::levels::{LevelsStage, SharedLevels};
use crate::limits::SharedLimits;
use crate::limits::stage::LimitStage;
use crate::presence::PresenceStage;
use crate::reconcile::ReconcileStage;
use crate::settlement::{Pulse, SettlementStage};
use crate::submission::SubmissionStage;
use crate::topology::Topology;

/// Notices that wait for the dispatcher. When it is behind, the stages that tell it wait.
const NOTICES: usize = 256;

/// Why the coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger's database is one that this build does not know.
    #[error(
        "ledger.url: a PostgreSQL ledger is not supported yet: use sqlite://… (the sink may be PostgreSQL)"
    )]
    PostgresLedger,
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
    /// Metrics or signals cannot be set up.
    #[error("start: {0}")]
    Process(#[from] anyhow::Error),
}

impl StartError {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Ledger(_) | Self::PostgresLedger | Self::Listen { .. } => {
                exit::CONFIG
            }
            Self::Broker(error) if error.is_configuration() => exit::CONFIG,
            // A topology that somebody else owns, and that is not there.
            Self::Broker(BrokerError::Missing { .. }) => exit::CONFIG,
            Self::Broker(_) => exit::UNAVAILABLE,
            Self::Process(_) => exit::FAILED,
        }
    }
}

/// Starts everything, runs until a signal, and gives the exit code.
pub async fn run(config_file: Option<PathBuf>) -> Result<u8, StartError> {
    let config = Config::load(config_file.as_deref())?;
    let metrics = telemetry::init_metrics()?;
    crate::metrics::describe();
    let address = config.api.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|problem| StartError::Listen { address, problem })?;
    let ledger: Arc<dyn Ledger> = match config.ledger_url() {
        DatabaseUrl::Sqlite(path) => Arc::new(SqliteLedger::open(&path).await?),
        DatabaseUrl::Postgres(_) => return Err(StartError::PostgresLedger),
    };
    let instance = Instance::generate("coordinator");
    let connector = Connector::new(&config.broker, &instance);
    let topology = Topology::new(&config, connector.clone());
    let connection = connector.connect_at_start("topology").await?;
    topology.ensure_on(&connection).await?;
    connector.goodbye(connection).await;

    let lifecycle = Lifecycle::new();
    let (tell, notices) = mpsc::channel(NOTICES);
    let fleet = Arc::new(Mutex::new(Fleet::default()));
    let publishing = connector.publishing_pool();
    let pulse = Arc::new(Mutex::new(Pulse::new(Instant::now())));
    let dispatch = DispatchStage {
        ledger: ledger.clone(),
        publishing: publishing.clone(),
        topology: topology.clone(),
        notices,
        draining: lifecycle.draining(),
    };
    let settlement = SettlementStage {
        ledger: ledger.clone(),
        connector: connector.clone(),
        publishing: publishing.clone(),
        lanes: config.lanes,
        pipelines: config.pipelines.clone(),
        pulse: pulse.clone(),
        notices: tell.clone(),
        draining: lifecycle.draining(),
    };
    let dead = DeadStage {
        ledger: ledger.clone(),
        connector: connector.clone(),
        publishing: publishing.clone(),
        notices: tell.clone(),
        draining: lifecycle.draining(),
    };
    let presence = PresenceStage {
        instance: instance.clone(),
        connector: connector.clone(),
        fleet: fleet.clone(),
        told: HashMap::new(),
        notices: tell.clone(),
        lanes: config.lanes,
        lost_after: config.reconcile.after.get(),
        draining: lifecycle.draining(),
    };
    let (looks, looked) = watch::channel(None);
    let depths = DepthsStage {
        connector: connector.clone(),
        publishing: publishing.clone(),
        topology: topology.clone(),
        looks,
        draining: lifecycle.draining(),
    };
    let reconcile = ReconcileStage {
        ledger: ledger.clone(),
        settlement: ledger.clone(),
        looks: looked.clone(),
        topology: topology.clone(),
        fleet: fleet.clone(),
        pulse,
        lanes: config.lanes,
        after: config.reconcile.after.get(),
        notices: tell.clone(),
        draining: lifecycle.draining(),
    };
    let levels = LevelsStage {
        config: config.levels.clone(),
        ledger: ledger.clone(),
        views: ledger.clone(),
        looks: looked,
        notices: tell.clone(),
        levels: SharedLevels::default(),
        draining: lifecycle.draining(),
    };
    let limits = SharedLimits::new(&config);
    let limit = LimitStage::start(
        limits.clone(),
        ledger.clone(),
        tell.clone(),
        lifecycle.draining(),
    )
    .await?;
    let ask = AskStage {
        instance: instance.clone(),
        connector: connector.clone(),
        publishing: publishing.clone(),
        lanes: config.lanes,
        permits: Arc::new(limits),
        claims: Arc::new(Suspects {
            ledger: ledger.clone(),
            settlement: ledger.clone(),
            fleet: fleet.clone(),
            notices: tell.clone(),
        }),
        draining: lifecycle.draining(),
    };
    let submission = SubmissionStage {
        ledger: ledger.clone(),
        pipelines: config.pipelines.clone(),
        backlog_limit: config.api.backlog_limit,
        notices: tell,
    };
    let api = Api {
        ledger,
        submission,
        fleet,
        metrics,
        token: config.api.token.clone(),
    };

    tracing::info!(
        api = %format!("http://{}", listener.local_addr().unwrap_or(address)),
        broker = %connector.address(),
        ledger = %config.ledger_url().address(),
        pipelines = config.pipelines.len(),
        "coordinator starts"
    );
    let draining = || lifecycle.draining();
    lifecycle.spawn(
        "presence",
        keep_consuming("presence", presence, topology.clone(), draining()),
    );
    lifecycle.spawn(
        "settlement",
        keep_consuming("settlement", settlement, topology.clone(), draining()),
    );
    lifecycle.spawn(
        "dead",
        keep_consuming("dead", dead, topology.clone(), draining()),
    );
    lifecycle.spawn(
        "depths",
        keep_consuming("depths", depths, topology.clone(), draining()),
    );
    lifecycle.spawn("ask", keep_consuming("ask", ask, topology, draining()));
    lifecycle.spawn("limits", limit.run());
    lifecycle.spawn("reconcile", reconcile.run());
    lifecycle.spawn("levels", levels.run());
    lifecycle.spawn("dispatch", dispatch.run(config));
    lifecycle.spawn("api", api::serve(api, listener, lifecycle.draining()));
    let code = lifecycle
        .run(DRAIN_PATIENCE)
        .await
        .map_err(anyhow::Error::from)?;
    tracing::info!(code, "coordinator stopped");
    Ok(code)
}

/// How long a stopping coordinator waits for requests and groups under way. Nothing is lost when it does
/// not: what is not recorded is published or settled again.
const DRAIN_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
