//! Configuration: one file, every key with an environment variable and a default.
//!
//! Order, later wins: defaults, `tidegate.toml` (in the working folder, or `--config`), environment
//! (`TIDEGATE_` + section + `__` + key). Unknown keys are errors with a suggestion. What comes out is
//! checked: no later code has to look at a number again.

mod api;
mod broker;
mod columns;
mod database;
mod error;
mod exec;
mod http;
mod levels;
mod limits;
mod list;
mod pipeline;
mod reconcile;
mod schedules;
mod search_console;
mod secret;
mod sections;
mod sinks;
mod size;
mod span;
mod tls;
mod webhooks;
mod weight;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::Deserialize;

pub use api::{ApiConfig, ApiToken, Role, TokenConfig};
pub use broker::{BrokerConfig, TopologyMode};
pub use columns::{Column, ColumnType};
pub use error::ConfigError;
pub use exec::ExecMode;
pub use levels::LevelsConfig;
pub use limits::{LimitConfig, LimitScope, Rate};
pub use pipeline::{HandlerKind, PipelineConfig};
pub use reconcile::ReconcileConfig;
pub use schedules::{Missed, ScheduleConfig, ScheduleName, SchedulePriority};
pub use search_console::SearchConsoleConfig;
pub use sections::{DatabaseUrl, LedgerConfig, WorkerConfig};
pub use sinks::{SinkChoice, SinkConfig, SinkKind, SinkPlace, Table};
pub use size::Size;
pub use span::Span;
pub use tls::Unprotected;
pub use webhooks::{HostPattern, WebhookSecret, WebhooksConfig};
pub use weight::{Weight, WeightError};

use crate::name::{LimitName, PipelineName, SinkName};
use crate::search_console::{PIPELINE_LIMITS, PLAN_PIPELINE, SLICE_PIPELINE};

/// The file that is read when `--config` names none and it exists.
pub const DEFAULT_FILE: &str = "tidegate.toml";
/// Most lanes: each is a queue a pipeline, and a quorum queue costs the broker a Raft group.
const MAX_LANES: u16 = 64;

/// Everything a coordinator or a worker can be told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder of the SQLite files. Default `.tidegate`. `TIDEGATE_DATA_DIR`
    pub data_dir: PathBuf,
    /// Shards of the keys, each a queue a pipeline (1–64). Default 2: two queues use both halves of a
    /// two-core broker. Every coordinator and worker of one broker must say the same. `TIDEGATE_LANES`
    pub lanes: u16,
    /// Whether to refuse a configuration that leaves a connection to another machine unprotected: to a broker other
    /// than `amqps://`, to a database without `sslmode=verify-full`, to the API without `api.cert_file`. Default false:
    /// the log warns of each. `TIDEGATE_REQUIRE_TLS`
    pub require_tls: bool,
    /// RabbitMQ.
    pub broker: BrokerConfig,
    /// The coordinator's record.
    pub ledger: LedgerConfig,
    /// Where results go, unless their pipeline names another sink; and what the Search Console job keeps.
    pub sink: SinkConfig,
    /// Other places where results go, by name.
    pub sinks: BTreeMap<SinkName, SinkConfig>,
    /// The coordinator's HTTP API.
    pub api: ApiConfig,
    /// When a batch is taken for lost.
    pub reconcile: ReconcileConfig,
    /// From when on something piles up.
    pub levels: LevelsConfig,
    /// The worker.
    pub worker: WorkerConfig,
    /// The Search Console job.
    pub search_console: SearchConsoleConfig,
    /// Limits by name. Those of the Search Console job are always there.
    pub limits: BTreeMap<LimitName, LimitConfig>,
    /// Kinds of work by name. The Search Console pipelines are always there.
    pub pipelines: BTreeMap<PipelineName, PipelineConfig>,
    /// What is submitted by itself, by name.
    pub schedules: BTreeMap<ScheduleName, ScheduleConfig>,
    /// Completion webhooks.
    pub webhooks: WebhooksConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from(".tidegate"),
            lanes: 2,
            require_tls: false,
            broker: BrokerConfig::default(),
            ledger: LedgerConfig::default(),
            sink: SinkConfig::default(),
            sinks: BTreeMap::new(),
            api: ApiConfig::default(),
            reconcile: ReconcileConfig::default(),
            levels: LevelsConfig::default(),
            worker: WorkerConfig::default(),
            search_console: SearchConsoleConfig::default(),
            limits: BTreeMap::new(),
            pipelines: BTreeMap::new(),
            schedules: BTreeMap::new(),
            webhooks: WebhooksConfig::default(),
        }
    }
}

impl Config {
    /// Reads file and environment and checks the result. `file` is what `--config` said.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        match file {
            Some(path) if !path.is_file() => return Err(ConfigError::NoFile(path.to_owned())),
            Some(path) => figment = figment.merge(Toml::file_exact(path)),
            None if Path::new(DEFAULT_FILE).is_file() => {
                figment = figment.merge(Toml::file_exact(DEFAULT_FILE));
            }
            None => {}
        }
        // The CLI's own variables share the prefix and are not the services' business.
        let environment = Env::prefixed("TIDEGATE_")
            .ignore(&["URL", "TOKEN", "CA_FILE", "LOG"])
            .split("__");
        Self::from_figment(&figment.merge(environment))
    }

    fn from_figment(figment: &Figment) -> Result<Self, ConfigError> {
        let built_in = Figment::from(Toml::string(limits::SEARCH_CONSOLE_LIMITS));
        let mut config: Self = built_in
            .merge(figment)
            .extract()
            .map_err(|e| ConfigError::from_figment(&e))?;
        config.add_search_console_pipelines();
        config.check()?;
        Ok(config)
    }

    /// The pipelines of the main job exist in every installation; a section of their name changes them.
    fn add_search_console_pipelines(&mut self) {
        for (name, handler) in [
            (PLAN_PIPELINE, HandlerKind::SearchConsolePlan),
            (SLICE_PIPELINE, HandlerKind::SearchConsoleSlice),
        ] {
            let name = PipelineName::new(name).expect("the built-in names are well-formed");
            let pipeline = self.pipelines.entry(name).or_default();
            pipeline.handler = Some(handler);
            pipeline
                .max_in_flight_per_key
                .get_or_insert(SearchConsoleConfig::MAX_IN_FLIGHT);
            for name in PIPELINE_LIMITS {
                let name = LimitName::new(name).expect("the built-in names are well-formed");
                if !pipeline.limits.contains(&name) {
                    pipeline.limits.push(name);
                }
            }
        }
        let [plan, slice] = [PLAN_PIPELINE, SLICE_PIPELINE]
            .map(|name| PipelineName::new(name).expect("the built-in names are well-formed"));
        if let Some(plan) = self.pipelines.get_mut(&plan) {
            plan.feeds.insert(slice);
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.lanes == 0 || self.lanes > MAX_LANES {
            return Err(ConfigError::wrong(
                "lanes",
                format!("must be 1 to {MAX_LANES}, is {}", self.lanes),
            ));
        }
        self.broker.check()?;
        self.check_tls()?;
        self.api.check()?;
        self.reconcile.check(self.broker.heartbeat)?;
        self.levels.check()?;
        self.worker.check()?;
        for (name, limit) in &self.limits {
            limit.check(name)?;
        }
        self.check_sinks()?;
        for (name, pipeline) in &self.pipelines {
            pipeline.check(name, &self.broker)?;
            if let Some(unknown) = pipeline
                .limits
                .iter()
                .find(|l| !self.limits.contains_key(l))
            {
                return Err(self.unknown_limit(name, unknown));
            }
        }
        pipeline::check_feeds(&self.pipelines)?;
        ScheduleConfig::check_count(self.schedules.len())?;
        for (name, schedule) in &self.schedules {
            schedule.check(name, |pipeline| self.pipelines.contains_key(pipeline))?;
        }
        self.webhooks.check()?;
        for name in self.worker.pipelines.iter().flatten() {
            if !self.pipelines.contains_key(name) {
                return Err(self.unknown_served_pipeline(name));
            }
        }
        Ok(())
    }

    fn unknown_limit(&self, pipeline: &PipelineName, limit: &LimitName) -> ConfigError {
        let known: Vec<&str> = self.limits.keys().map(LimitName::as_str).collect();
        ConfigError::wrong(
            format!("pipelines.{pipeline}.limits"),
            format!(
                "names {limit}, which is not configured; configured are {}",
                known.join(", ")
            ),
        )
    }

    fn unknown_served_pipeline(&self, name: &PipelineName) -> ConfigError {
        let known: Vec<&str> = self.pipelines.keys().map(PipelineName::as_str).collect();
        ConfigError::wrong(
            "worker.pipelines",
            format!(
                "names {name}, which is not configured; configured are {}",
                known.join(", ")
            ),
        )
    }

    /// The pipelines that a worker with this config serves.
    #[must_use]
    pub fn served_pipelines(&self) -> BTreeMap<PipelineName, PipelineConfig> {
        let served = |name: &PipelineName| match &self.worker.pipelines {
            Some(chosen) => chosen.contains(name),
            None => true,
        };
        self.pipelines
            .iter()
            .filter(|(name, _)| served(name))
            .map(|(n, p)| (n.clone(), p.clone()))
            .collect()
    }

    /// The sections that differ, as they are written in the file. A changed secret is not seen.
    #[must_use]
    pub fn changed_sections(&self, other: &Self) -> Vec<&'static str> {
        macro_rules! changed {
            ($($section:ident),+) => {
                [$((stringify!($section), format!("{:?}", self.$section) != format!("{:?}", other.$section))),+]
            };
        }
        // What is left out are the coordinator's own sections.
        let sections = changed!(
            data_dir,
            lanes,
            require_tls,
            broker,
            sink,
            worker,
            search_console,
            pipelines
        );
        let changed = sections.into_iter().filter(|(_, changed)| *changed);
        changed.map(|(section, _)| section).collect()
    }

    /// The ledger's database: the configured one, else a file in `data_dir`.
    #[must_use]
    pub fn ledger_url(&self) -> DatabaseUrl {
        self.ledger
            .url
            .clone()
            .unwrap_or_else(|| DatabaseUrl::file(&self.data_dir, "ledger.db"))
    }
}

#[cfg(test)]
mod deployed;
#[cfg(test)]
mod tests;
