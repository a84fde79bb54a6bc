//! What the stages stand on, and how each of them is put together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use metrics_exporter_prometheus::PrometheusHandle;
use shared::broker::{Connector, PublishingPool};
use shared::config::{Config, ConfigError};
use shared::lifecycle::Lifecycle;
use shared::name::Instance;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{Api, Hosts, Tokens};
use crate::ask::AskStage;
use crate::claims::Suspects;
use crate::dead::DeadStage;
use crate::depths::DepthsStage;
use crate::dispatch::DispatchStage;
use crate::doctor::Doctor;
use crate::fleet::Fleet;
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

/// What the stages share.
pub(super) struct Ground {
    config: Config,
    instance: Instance,
    ledger: Arc<dyn Ledger>,
    connector: Connector,
    publishing: PublishingPool,
    topology: Topology,
    fleet: SharedFleet,
    levels: SharedLevels,
    limits: SharedLimits,
    /// How far settlement has got.
    pulse: Arc<Mutex<Pulse>>,
    notices: mpsc::Sender<Notice>,
    lifecycle: Lifecycle,
}

impl Ground {
    pub(super) fn new(
        config: &Config,
        instance: Instance,
        ledger: &Arc<dyn Ledger>,
        connector: &Connector,
        topology: &Topology,
        notices: mpsc::Sender<Notice>,
        lifecycle: &Lifecycle,
    ) -> Self {
        Self {
            publishing: connector.publishing_pool(),
            fleet: Arc::new(Mutex::new(Fleet::default())),
            levels: SharedLevels::default(),
            limits: SharedLimits::new(config),
            pulse: Arc::new(Mutex::new(Pulse::new(Instant::now()))),
            config: config.clone(),
            instance,
            ledger: ledger.clone(),
            connector: connector.clone(),
            topology: topology.clone(),
            notices,
            lifecycle: lifecycle.clone(),
        }
    }

    pub(super) fn submission(&self) -> SubmissionStage {
        SubmissionStage {
            ledger: self.ledger.clone(),
            pipelines: self.config.pipelines.clone(),
            room: Room::new(self.config.api.backlog_limit),
            pressure: Arc::new(self.levels.clone()),
            webhooks: Arc::new(Receivers::new(&self.config.webhooks)),
            notices: self.notices.clone(),
        }
    }

    pub(super) async fn dispatch(
        &self,
        notices: mpsc::Receiver<Notice>,
    ) -> Result<DispatchStage, LedgerError> {
        Ok(DispatchStage {
            ledger: self.ledger.clone(),
            publishing: self.publishing.clone(),
            topology: self.topology.clone(),
            paused: self.ledger.paused_pipelines().await?,
            notices,
            draining: self.draining(),
        })
    }

    pub(super) fn settlement(&self) -> SettlementStage {
        SettlementStage {
            ledger: self.ledger.clone(),
            ownership: self.ledger.clone(),
            connector: self.connector.clone(),
            publishing: self.publishing.clone(),
            lanes: self.config.lanes,
            pipelines: self.config.pipelines.clone(),
            pulse: self.pulse.clone(),
            notices: self.notices.clone(),
            draining: self.draining(),
        }
    }

    pub(super) fn dead(&self) -> DeadStage {
        DeadStage {
            ledger: self.ledger.clone(),
            connector: self.connector.clone(),
            publishing: self.publishing.clone(),
            notices: self.notices.clone(),
            draining: self.draining(),
        }
    }

    pub(super) fn presence(&self) -> PresenceStage {
        PresenceStage {
            instance: self.instance.clone(),
            connector: self.connector.clone(),
            fleet: self.fleet.clone(),
            told: HashMap::new(),
            notices: self.notices.clone(),
            lanes: self.config.lanes,
            lost_after: self.config.reconcile.after.get(),
            draining: self.draining(),
        }
    }

    pub(super) fn ask(&self) -> AskStage {
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
            permits: Arc::new(self.limits.clone()),
            claims: Arc::new(suspects),
            draining: self.draining(),
        }
    }

    pub(super) async fn limits(&self) -> Result<LimitStage, LedgerError> {
        LimitStage::start(
            self.limits.clone(),
            self.ledger.clone(),
            self.notices.clone(),
            self.draining(),
        )
        .await
    }

    /// Who looks at the queues, and who draws conclusions from it.
    pub(super) fn watchers(&self) -> (DepthsStage, ReconcileStage, LevelsStage) {
        let (looks, looked) = watch::channel(None);
        let depths = DepthsStage {
            connector: self.connector.clone(),
            publishing: self.publishing.clone(),
            topology: self.topology.clone(),
            looks,
            draining: self.draining(),
        };
        let reconcile = ReconcileStage {
            ledger: self.ledger.clone(),
            settlement: self.ledger.clone(),
            looks: looked.clone(),
            topology: self.topology.clone(),
            fleet: self.fleet.clone(),
            pulse: self.pulse.clone(),
            lanes: self.config.lanes,
            after: self.config.reconcile.after.get(),
            notices: self.notices.clone(),
            draining: self.draining(),
        };
        let levels = LevelsStage {
            config: self.config.levels.clone(),
            ledger: self.ledger.clone(),
            views: self.ledger.clone(),
            looks: looked,
            notices: self.notices.clone(),
            levels: self.levels.clone(),
            draining: self.draining(),
        };
        (depths, reconcile, levels)
    }

    /// The operators' hands, who goes on cancelling, and who tells the workers.
    pub(super) fn operations(&self) -> (Operations, CancelStage, ControlStage) {
        let (cancelled, tasks) = (Arc::new(Notify::new()), TaskTracker::new());
        let (cancelling, cancelling_now) = watch::channel(Vec::new());
        let cancel = CancelStage {
            ledger: self.ledger.clone(),
            cancelled: cancelled.clone(),
            cancelling,
            tasks: tasks.clone(),
            draining: self.draining(),
        };
        let control = ControlStage {
            instance: self.instance.clone(),
            publishing: self.publishing.clone(),
            cancelling: cancelling_now,
            draining: self.draining(),
        };
        let operations = Operations {
            ledger: self.ledger.clone(),
            views: self.ledger.clone(),
            notices: self.notices.clone(),
            cancelled,
            tasks,
            draining: self.draining(),
        };
        (operations, cancel, control)
    }

    pub(super) fn schedules(&self, submission: &SubmissionStage) -> ScheduleStage {
        ScheduleStage {
            shown: Schedules::new(&self.config.schedules),
            submission: Arc::new(submission.clone()),
            ledger: self.ledger.clone(),
            draining: self.draining(),
        }
    }

    pub(super) fn webhooks(&self) -> Result<WebhookStage, ClientError> {
        WebhookStage::new(&self.config.webhooks, self.ledger.clone(), self.draining())
    }

    pub(super) fn api(
        &self,
        submission: SubmissionStage,
        schedules: Schedules,
        operations: Operations,
        metrics: PrometheusHandle,
    ) -> Result<Arc<Api>, ConfigError> {
        let doctor = Doctor {
            config: self.config.clone(),
            connector: self.connector.clone(),
            publishing: self.publishing.clone(),
            ledger: self.ledger.clone(),
            fleet: self.fleet.clone(),
            levels: self.levels.clone(),
        };
        Ok(Arc::new(Api {
            ledger: self.ledger.clone(),
            operators: self.ledger.clone(),
            submission,
            schedules,
            limits: self.limits.clone(),
            operations,
            fleet: self.fleet.clone(),
            levels: self.levels.clone(),
            doctor,
            metrics,
            tokens: Tokens::new(&self.config.api)?,
            hosts: Hosts::new(&self.config.api),
        }))
    }

    fn draining(&self) -> CancellationToken {
        self.lifecycle.draining()
    }
}
