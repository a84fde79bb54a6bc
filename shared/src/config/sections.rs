//! The small sections: `[ledger]`, `[worker]`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::list::list_or_commas;
use super::{ConfigError, Span, tls};
use crate::name::PipelineName;
use crate::tls::ServerTls;

/// A database that this build can talk to.
#[derive(Debug, Clone)]
pub enum DatabaseUrl {
    /// `sqlite://path`
    Sqlite(PathBuf),
    /// `postgres://user:password@host/database`. `?sslmode=verify-full` encrypts and verifies, by the certificates of
    /// `sslrootcert=FILE` and the public CAs; `sslcert=FILE&sslkey=FILE` is our own certificate. The files are read for
    /// each connection. Another `sslmode`, or none, believes whoever answers, and to another machine is warned of.
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
    /// The same from a file, such as a mounted secret. Not together with `url`.
    pub url_file: Option<PathBuf>,
}

/// The worker. `TIDEGATE_WORKER__…`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// How many batches run at once (1–4096). Default 16: right for work that waits for the network; for
    /// work that computes, the number of cores.
    pub slots: u32,
    /// Most deliveries held beyond the slots, over all queues, so that a free slot never waits for the broker
    /// (0–4096). Default 64. How many are held follows from how long the broker and the batches take, and from
    /// how long slots stay free: short batches need many, long ones one. More hides a slow network.
    pub look_ahead: u32,
    /// Fewest deliveries held beyond the slots (at most `look_ahead`). Default 0. What is held here waits while
    /// other workers idle.
    pub look_ahead_min: u32,
    /// The pipelines to serve, comma-separated in the environment. Default: all that are configured.
    #[serde(deserialize_with = "names_or_commas")]
    pub pipelines: Option<Vec<PipelineName>>,
    /// How long SIGTERM lets running batches finish. Default 25 s: below Kubernetes' grace of 30 s.
    pub drain_timeout: Span,
    /// Where to answer probes and scrapes: `/healthz`, `/readyz`, `/metrics`. Default `127.0.0.1:0`: a free port,
    /// which the log names. Kubernetes needs `0.0.0.0` and a fixed port, `worker health` a fixed port. Asks for no token, and tells no more
    /// than figures.
    pub listen: SocketAddr,
    /// PEM file with the certificate, and intermediate ones after it, to answer them over HTTPS, and not otherwise.
    /// Default: none, and plain HTTP. Looked at with each connection.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its key, not encrypted.
    pub key_file: Option<PathBuf>,
    /// Threads that Rust handlers run on (1–512), apart from those that talk to RabbitMQ. Default: the number of
    /// cores. Handlers that compute or block without `spawn_blocking` keep a thread each, and the others wait.
    pub threads: Option<u32>,
    /// Handlers that may go on blocking a thread after they were told to end and abandoned (0–64). Default 4.
    /// With more the worker drains and exits with 1, so that its orchestrator starts a new process: nothing else
    /// gets rid of them. Each keeps a set of `threads` alive.
    pub max_abandoned: u32,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            slots: 16,
            look_ahead: 64,
            look_ahead_min: 0,
            pipelines: None,
            drain_timeout: Span::seconds(25),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cert_file: None,
            key_file: None,
            threads: None,
            max_abandoned: 4,
        }
    }
}

impl WorkerConfig {
    const MAX_SLOTS: u32 = 4096;
    const MAX_THREADS: u32 = 512;
    const MAX_ABANDONED: u32 = 64;

    /// Fewest and most deliveries held beyond the slots.
    #[must_use]
    pub fn look_ahead_bounds(&self) -> RangeInclusive<u32> {
        self.look_ahead_min..=self.look_ahead
    }

    /// How many threads handlers have.
    #[must_use]
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads
            .map_or_else(cores, |threads| usize::try_from(threads).unwrap_or(1))
    }

    /// What to speak TLS with on `listen`; `None`: plain HTTP.
    pub fn tls(&self) -> Result<Option<ServerTls>, ConfigError> {
        tls::server("worker", self.cert_file.as_ref(), self.key_file.as_ref())
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.tls()?;
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
        if self.look_ahead_min > self.look_ahead {
            let problem = format!(
                "must satisfy look_ahead_min <= look_ahead: {} > {}",
                self.look_ahead_min, self.look_ahead
            );
            return Err(ConfigError::wrong("worker.look_ahead_min", problem));
        }
        if let Some(threads) = self.threads
            && (threads == 0 || threads > Self::MAX_THREADS)
        {
            let problem = format!("must be 1 to {}, is {threads}", Self::MAX_THREADS);
            return Err(ConfigError::wrong("worker.threads", problem));
        }
        if self.max_abandoned > Self::MAX_ABANDONED {
            let problem = format!(
                "must be at most {}, is {}",
                Self::MAX_ABANDONED,
                self.max_abandoned
            );
            return Err(ConfigError::wrong("worker.max_abandoned", problem));
        }
        if self.pipelines.as_ref().is_some_and(Vec::is_empty) {
            return Err(ConfigError::wrong(
                "worker.pipelines",
                "names no pipeline: leave it out to serve all",
            ));
        }
        Ok(())
    }
}

fn names_or_commas<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<PipelineName>>, D::Error> {
    list_or_commas(d).map(Some)
}
