//! The small sections: `[ledger]`, `[sink]`, `[worker]`.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::list::list_or_commas;
use super::{ConfigError, Span};
use crate::name::PipelineName;

/// A database that this build can talk to.
#[derive(Debug, Clone)]
pub enum DatabaseUrl {
    /// `sqlite://path`
    Sqlite(std::path::PathBuf),
    /// `postgres://user:password@host/database`
    Postgres(SecretString),
}

impl DatabaseUrl {
    pub(super) fn file(folder: &Path, name: &str) -> Self {
        Self::Sqlite(folder.join(name))
    }

    /// The database without user and password, for logs and errors.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite://{}", path.display()),
            Self::Postgres(url) => match url::Url::parse(url.expose_secret()) {
                Ok(url) => format!(
                    "postgres://{}{}",
                    url.host_str().unwrap_or("localhost"),
                    url.path()
                ),
                Err(_) => "postgres://…".to_owned(),
            },
        }
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if let Some(path) = text
            .strip_prefix("sqlite://")
            .filter(|path| !path.is_empty())
        {
            return Ok(Self::Sqlite(path.into()));
        }
        let is_postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
        if is_postgres && url::Url::parse(&text).is_ok() {
            return Ok(Self::Postgres(text.into()));
        }
        // The text may hold a password, so it is not repeated.
        Err(serde::de::Error::custom(
            "is no database URL: write sqlite://path/to/file.db or postgres://user:password@host/database",
        ))
    }
}

/// The coordinator's durable record. `TIDEGATE_LEDGER__…`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerConfig {
    /// `sqlite://…` or `postgres://…`. Default: `ledger.db` in `data_dir`. Whichever it is, one coordinator
    /// uses it at a time.
    pub url: Option<DatabaseUrl>,
}

/// Where results go. `TIDEGATE_SINK__…`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SinkConfig {
    /// `sqlite://…` or `postgres://…`. Default: `results.db` in `data_dir`.
    pub url: Option<DatabaseUrl>,
}

/// The worker. `TIDEGATE_WORKER__…`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// How many batches run at once (1–4096). Default 16: right for work that waits for the network; for
    /// work that computes, the number of cores.
    pub slots: u32,
    /// Deliveries held beyond the slots, over all queues, so that a free slot never waits for the broker
    /// (0–4096). Default 32. More hides a slow network; too many are hoarded while other workers idle.
    pub look_ahead: u32,
    /// The pipelines to serve, comma-separated in the environment. Default: all that are configured.
    #[serde(deserialize_with = "names_or_commas")]
    pub pipelines: Option<Vec<PipelineName>>,
    /// How long SIGTERM lets running batches finish. Default 25 s: below Kubernetes' grace of 30 s.
    pub drain_timeout: Span,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            slots: 16,
            look_ahead: 32,
            pipelines: None,
            drain_timeout: Span::seconds(25),
        }
    }
}

impl WorkerConfig {
    const MAX_SLOTS: u32 = 4096;

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.slots == 0 || self.slots > Self::MAX_SLOTS {
            return Err(ConfigError::wrong(
                "worker.slots",
                format!("must be 1 to {}, is {}", Self::MAX_SLOTS, self.slots),
            ));
        }
        if self.look_ahead > Self::MAX_SLOTS {
            let problem = format!(
                "must be at most {}, is {}",
                Self::MAX_SLOTS,
                self.look_ahead
            );
            return Err(ConfigError::wrong("worker.look_ahead", problem));
        }
        if self.pipelines.as_ref().is_some_and(Vec::is_empty) {
            return Err(ConfigError::wrong(
                "worker.pipelines",
                "names no pipeline: leave it out to serve all",
            ));
        }
        Ok(())
    }

    /// Most unacked deliveries of one of `queues` queues in `lanes` lanes: RabbitMQ bounds each consumer on
    /// its own. One pipeline alone fills all slots over its lanes; the look-ahead is shared by all queues.
    ///
    /// # Panics
    /// When there are no lanes or queues, which [`crate::config`] refuses.
    #[must_use]
    pub fn prefetch(&self, lanes: u16, queues: usize) -> u16 {
        let queues = u32::try_from(queues).unwrap_or(u32::MAX);
        let prefetch = self.slots.div_ceil(u32::from(lanes)) + self.look_ahead.div_ceil(queues);
        u16::try_from(prefetch).unwrap_or(u16::MAX)
    }
}

fn names_or_commas<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<PipelineName>>, D::Error> {
    list_or_commas(d).map(Some)
}
