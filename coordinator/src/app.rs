//! The composition root: the one place that names concrete backends. It binds and connects first, so that
//! a bad port, password or database ends the start, and serves last.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use shared::broker::{BrokerError, Connector, PublishingPool};
use shared::config::{Config, ConfigError, DatabaseUrl};
use shared::lifecycle::Lifecycle;
use shared::name::Instance;
use shared::{exit, telemetry};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api, Hosts, Patience, Server, Tokens};
use crate::ask::AskStage;
use crate::claims::Suspects;
use crate::consuming::keep_consuming;
use crate::dead::DeadStage;
use crate::definitions::PasswordError;
use crate::depths::DepthsStage;
use crate::dispatch::DispatchStage;
use crate::doctor::Doctor;
use crate::fleet::Fleet;
use crate::ledger::postgres::PostgresLedger;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{Ledger, LedgerError};
use crate::levels::{LevelsStage, SharedLevels};
use crate::limits::SharedLimits;
use crate::limits::stage::LimitStage;
use crate::notice::Notice;
use crate::operations::Operations;
use crate::operations::cancel::CancelStage;
use crate::operations::control::ControlStage;
use crate::presence::{PresenceStage, SharedFleet};
use crate::reconcile::ReconcileStage;
use crate::schedules::{ScheduleStage, Schedules};
use crate::settlement::{Pulse, SettlementStage};
use crate::submission::{Room, SubmissionStage};
use crate::topology::Topology;
use crate::webhooks::{ClientError, Receivers, WebhookStage};

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
    #[error("the coordinator at {address} is not ready: {problem}")]
    NotReady {
        /// Where it was asked.
        address: std::net::SocketAddr,
        /// Its status, or why there is none.
        problem: String,
    },
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
            Self::Output { .. } | Self::NotReady { .. } | Self::Process(_) => exit::FAILED,
        }
    }
}

/// Starts everything, runs until a signal, and gives the exit code.
#[expect(clippy::too_many_lines, reason = "one list of what there is, in order")]
pub async fn run(config_file: Option<PathBuf>) -> Result<u8, StartError> {
    let config = Config::load(config_file.as_deref())?;
    let metrics = telemetry::init_metrics()?;
    crate::metrics::describe();
    let address = config.api.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|problem| StartError::Listen { address, problem })?;
    let instance = Instance::generate("coordinator");
    let ledger = open_ledger(&config, &instance).await?;
    let connector = Connector::new(&config.broker, &instance);
    let topology = Topology::new(&config, connector.clone());
    let connection = connector.connect_at_start("topology").await?;
    topology.ensure_on(&connection).await?;
    connector.goodbye(connection).await;

    let lifecycle = Lifecycle::new();
    let (tell, notices) = mpsc::channel(NOTICES);
    let fleet = Arc::new(Mutex::new(Fleet::default()));
    let publishing = connector.publishing_pool();
    let levels = SharedLevels::default();
    let ground = Ground {
        config: &config,
        instance: instance.clone(),
        ledger: ledger.clone(),
        connector: connector.clone(),
        publishing: publishing.clone(),
        topology: topology.clone(),
        fleet: fleet.clone(),
        notices: tell.clone(),
        lifecycle: &lifecycle,
    };
    let settlement = ground.settlement();
    let dead = ground.dead();
    let presence = ground.presence();
    let (depths, reconcile, levels_stage) =
        ground.watchers(settlement.pulse.clone(), levels.clone());
    let limits = SharedLimits::new(&config);
    let limit = LimitStage::start(
        limits.clone(),
        ledger.clone(),
        tell.clone(),
        lifecycle.draining(),
    )
    .await?;
    let ask = ground.ask(limits.clone());
    let dispatch = DispatchStage {
        ledger: ledger.clone(),
        publishing: publishing.clone(),
        topology: topology.clone(),
        paused: ledger.paused_pipelines().await?,
        notices,
        draining: lifecycle.draining(),
    };
    let (cancelled, tasks) = (Arc::new(Notify::new()), TaskTracker::new());
    let (cancelling, cancelling_now) = watch::channel(Vec::new());
    let cancel = CancelStage {
        ledger: ledger.clone(),
        cancelled: cancelled.clone(),
        cancelling,
        tasks: tasks.clone(),
        draining: lifecycle.draining(),
    };
    let control = ControlStage {
        instance: instance.clone(),
        publishing: publishing.clone(),
        cancelling: cancelling_now,
        draining: lifecycle.draining(),
    };
    let operations = Operations {
        ledger: ledger.clone(),
        views: ledger.clone(),
        notices: tell.clone(),
        cancelled,
        tasks,
        draining: lifecycle.draining(),
    };
    let submission = SubmissionStage {
        ledger: ledger.clone(),
        pipelines: config.pipelines.clone(),
        room: Room::new(config.api.backlog_limit),
        pressure: Arc::new(levels.clone()),
        webhooks: Arc::new(Receivers::new(&config.webhooks)),
        notices: tell,
    };
    let schedules = ScheduleStage {
        shown: Schedules::new(&config.schedules),
        submission: Arc::new(submission.clone()),
        ledger: ledger.clone(),
        draining: lifecycle.draining(),
    };
    let webhooks = WebhookStage::new(&config.webhooks, ledger.clone(), lifecycle.draining())?;
    let doctor = Doctor {
        config: config.clone(),
        connector: connector.clone(),
        publishing,
        ledger: ledger.clone(),
        fleet: fleet.clone(),
        levels: levels.clone(),
    };
    let api = Arc::new(Api {
        ledger: ledger.clone(),
        operators: ledger.clone(),
        submission,
        schedules: schedules.shown.clone(),
        limits,
        operations,
        fleet,
        levels,
        doctor,
        metrics: metrics.clone(),
        tokens: Tokens::new(&config.api.all_tokens()?),
        hosts: Hosts::new(&config.api),
    });
    let server = Server {
        listener,
        max_connections: config.api.max_connections,
        patience: Patience::default(),
        draining: lifecycle.draining(),
    };

    tracing::info!(
        api = %format!("http://{}", server.listener.local_addr().unwrap_or(address)),
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
    lifecycle.spawn("levels", levels_stage.run());
    lifecycle.spawn("schedules", schedules.run(config.schedules.clone()));
    lifecycle.spawn("webhooks", webhooks.run());
    lifecycle.spawn("dispatch", dispatch.run(config));
    lifecycle.spawn("cancel", cancel.run());
    lifecycle.spawn("control", control.run());
    lifecycle.spawn("api", api::serve(api, server));
    lifecycle.spawn("metrics", telemetry::upkeep(metrics, draining()));
    lifecycle.spawn("ledger", keep_ledger(ledger.clone(), draining()));
    let code = lifecycle
        .run(DRAIN_PATIENCE)
        .await
        .map_err(anyhow::Error::from)?;
    ledger.release().await;
    tracing::info!(code, "coordinator stopped");
    Ok(code)
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

/// What the stages stand on.
struct Ground<'a> {
    config: &'a Config,
    instance: Instance,
    ledger: Arc<dyn Ledger>,
    connector: Connector,
    publishing: PublishingPool,
    topology: Topology,
    fleet: SharedFleet,
    notices: mpsc::Sender<Notice>,
    lifecycle: &'a Lifecycle,
}

impl Ground<'_> {
    fn settlement(&self) -> SettlementStage {
        SettlementStage {
            ledger: self.ledger.clone(),
            ownership: self.ledger.clone(),
            connector: self.connector.clone(),
            publishing: self.publishing.clone(),
            lanes: self.config.lanes,
            pipelines: self.config.pipelines.clone(),
            pulse: Arc::new(Mutex::new(Pulse::new(Instant::now()))),
            notices: self.notices.clone(),
            draining: self.lifecycle.draining(),
        }
    }

    fn dead(&self) -> DeadStage {
        DeadStage {
            ledger: self.ledger.clone(),
            connector: self.connector.clone(),
            publishing: self.publishing.clone(),
            notices: self.notices.clone(),
            draining: self.lifecycle.draining(),
        }
    }

    fn presence(&self) -> PresenceStage {
        PresenceStage {
            instance: self.instance.clone(),
            connector: self.connector.clone(),
            fleet: self.fleet.clone(),
            told: HashMap::new(),
            notices: self.notices.clone(),
            lanes: self.config.lanes,
            lost_after: self.config.reconcile.after.get(),
            draining: self.lifecycle.draining(),
        }
    }

    /// Who looks at the queues, and who draws conclusions from it.
    fn watchers(
        &self,
        pulse: Arc<Mutex<Pulse>>,
        levels: SharedLevels,
    ) -> (DepthsStage, ReconcileStage, LevelsStage) {
        let (looks, looked) = watch::channel(None);
        let depths = DepthsStage {
            connector: self.connector.clone(),
            publishing: self.publishing.clone(),
            topology: self.topology.clone(),
            looks,
            draining: self.lifecycle.draining(),
        };
        let reconcile = ReconcileStage {
            ledger: self.ledger.clone(),
            settlement: self.ledger.clone(),
            looks: looked.clone(),
            topology: self.topology.clone(),
            fleet: self.fleet.clone(),
            pulse,
            lanes: self.config.lanes,
            after: self.config.reconcile.after.get(),
            notices: self.notices.clone(),
            draining: self.lifecycle.draining(),
        };
        let levels = LevelsStage {
            config: self.config.levels.clone(),
            ledger: self.ledger.clone(),
            views: self.ledger.clone(),
            looks: looked,
            notices: self.notices.clone(),
            levels,
            draining: self.lifecycle.draining(),
        };
        (depths, reconcile, levels)
    }

    fn ask(&self, limits: SharedLimits) -> AskStage {
        let suspects = Suspects {
            ledger: self.ledger.clone(),
            settlement: self.ledger.clone(),
            fleet: self.fleet.clone(),
            notices: self.notices.clone(),
        };
        AskStage {
            instance: self.instance.clone(),
            connector: self.connector.clone(),
            publishing: self.publishing.clone(),
            lanes: self.config.lanes,
            ownership: self.ledger.clone(),
            permits: Arc::new(limits),
            claims: Arc::new(suspects),
            draining: self.lifecycle.draining(),
        }
    }
}

/// How long a stopping coordinator waits for requests and groups under way. Nothing is lost when it does
/// not: what is not recorded is published or settled again.
const DRAIN_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
