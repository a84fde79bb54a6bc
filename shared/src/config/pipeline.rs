//! `[pipelines.<name>]`: what a kind of work is, how it is retried, how much of it is out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use super::{BrokerConfig, ConfigError, ExecMode, SinkChoice, Size, Span, Weight};
use crate::backoff::Backoff;
use crate::name::{Key, LimitName, PipelineName};

/// A kind of work. The coordinator reads windows and retries, the worker reads handler and deadline.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// What a worker does with a batch. Default: `exec` where there is a `command`, else `library`.
    pub handler: Option<HandlerKind>,
    /// `exec`: program and arguments, started without a shell.
    pub command: Vec<String>,
    /// `exec`: names of environment variables that the command gets besides `PATH`, `HOME`, `LANG`, `TMPDIR`.
    pub environment: Vec<String>,
    /// `exec`: whether a process serves one batch or many. Default `batch`.
    pub mode: ExecMode,
    /// `exec` in `lines` mode: most processes of one worker (1–1024). They are started when they are needed
    /// and kept. Default: as many as the worker has slots; with fewer, batches wait in their slots for one, up to half
    /// of `deadline`: then they come back a second later, without a failure.
    pub processes: Option<u32>,
    /// `exec` in `lines` mode: after so many batches a process is ended and another one started, for commands
    /// that grow. Default: never.
    pub batches_per_process: Option<u32>,
    /// `exec` in `lines` mode: how long a process may take to become ready. Default 1 min. Batches wait for it up to
    /// half of `deadline`.
    pub start_timeout: Span,
    /// `exec`: most address space of each process, such as `"512MiB"`: what it allocates beyond fails. Libraries
    /// reserve more than they use, so leave room. Default: no limit. Linux only.
    pub memory_limit: Option<Size>,
    /// `exec`: most CPU time of each process in one batch, in whole seconds; beyond, it gets SIGXCPU.
    /// Default: no limit but the deadline. Linux only.
    pub cpu_limit: Option<Span>,
    /// `exec`: whether programs such as `sudo` may get more privileges than the worker has. Default `false`.
    pub allow_new_privileges: bool,
    /// `http`: where batches are posted, `https://…` or `http://…`.
    pub url: Option<Url>,
    /// `http`: whether `url` may have a private address (loopback, 10.0.0.0/8, link-local, …). Default `false`:
    /// a name that leads into the worker's own network is not called.
    pub allow_private: bool,
    /// `http`: how long connecting may take, TLS included. Default 10 s.
    pub connect_timeout: Span,
    /// `http`: sent as `Authorization: Bearer …`. Default: none.
    pub token: Option<SecretString>,
    /// The same from a file, such as a mounted secret. Not together with `token`.
    pub token_file: Option<PathBuf>,
    /// `http`: signs each request (16 bytes or more). Default: none, and requests carry no signature.
    pub secret: Option<SecretString>,
    /// The same from a file, such as a mounted secret. Not together with `secret`.
    pub secret_file: Option<PathBuf>,
    /// `http`: names `secret` to the receiver, so that it can be changed without a pause. Default `default`.
    pub secret_id: String,
    /// Longest run time of one attempt; after it the handler is stopped and the attempt counts as failed.
    /// Default 5 min, at most 5 min less than `broker.consumer_timeout`.
    pub deadline: Span,
    /// Failures after which a batch is dead (1–1000). Default 5.
    pub max_attempts: u32,
    /// Upper bound of the first retry delay; it doubles with each failure. Default 1 s.
    pub retry_base: Span,
    /// Upper bound of all retry delays. Default 5 min.
    pub retry_cap: Span,
    /// Where results are stored: the name of one of `[sinks]`, `true` for the default `[sink]`, or `false`: then rows
    /// are counted and dropped, and no commit marker is written. Default `true`. Change it only while nothing of
    /// the pipeline is out: a batch's commit marker is where its rows are.
    pub sink: SinkChoice,
    /// Batches out per live slot. Default 4.
    pub look_ahead: u32,
    /// Fewest batches out, workers or not: what makes depth visible to an autoscaler. Default 16.
    pub window_min: u32,
    /// Most batches out (up to 10,000). Default 1,000.
    pub window_max: u32,
    /// Most batches of one key out. Default: no limit (3 for the Search Console pipelines).
    pub max_in_flight_per_key: Option<u32>,
    /// Shares of keys that differ from the others', in batches a turn (0.1–100). Default 1 for every key.
    pub weights: BTreeMap<Key, Weight>,
    /// Pipelines that its follow-ups go to: while they have too much, it is held back. Default none (`gsc.plan`
    /// always feeds `gsc.slice`). Pipelines cannot feed each other in a circle.
    pub feeds: BTreeSet<PipelineName>,
    /// Batches pending or out in a pipeline that it feeds (1–1,000,000) above which only keys with nothing there go
    /// on, one batch at a time; above four times that, none do. Too low starves the workers downstream, too high
    /// lets the ledger grow. Default 10,000.
    pub downstream_limit: u32,
    /// Limits that its batches fall under, by name. Batches whose limit is used up stay with the coordinator
    /// until it is not; a command or an endpoint gets its batch when all of them give leave for one call. The
    /// Search Console pipelines have their own.
    pub limits: Vec<LimitName>,
}

/// What a worker does with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandlerKind {
    /// Runs `command`: payload on stdin, rows on stdout.
    Exec,
    /// Posts batches to `url`.
    Http,
    /// Gives it to the handler in Rust that the worker's own program has for this pipeline. A worker without
    /// one that is to serve it (`worker.pipelines`) does not start.
    Library,
    /// Does nothing: for measuring and for trying an installation.
    Noop,
    /// The Search Console job's first stage; set by Tidegate itself.
    #[serde(skip_deserializing)]
    SearchConsolePlan,
    /// The Search Console job's second stage; set by Tidegate itself.
    #[serde(skip_deserializing)]
    SearchConsoleSlice,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            handler: None,
            command: Vec::new(),
            environment: Vec::new(),
            mode: ExecMode::default(),
            processes: None,
            batches_per_process: None,
            start_timeout: Span::seconds(60),
            memory_limit: None,
            cpu_limit: None,
            allow_new_privileges: false,
            url: None,
            allow_private: false,
            connect_timeout: Span::seconds(10),
            token: None,
            token_file: None,
            secret: None,
            secret_file: None,
            secret_id: "default".to_owned(),
            deadline: Span::seconds(5 * 60),
            max_attempts: 5,
            retry_base: Span::seconds(1),
            retry_cap: Span::seconds(5 * 60),
            sink: SinkChoice::default(),
            look_ahead: 4,
            window_min: 16,
            window_max: 1_000,
            max_in_flight_per_key: None,
            weights: BTreeMap::new(),
            feeds: BTreeSet::new(),
            downstream_limit: 10_000,
            limits: Vec::new(),
        }
    }
}

impl PipelineConfig {
    /// The consumer timeout counts from delivery: waiting for a slot, storing and reporting need some of it, and
    /// RabbitMQ looks once a minute.
    const BESIDES_DEADLINE: Span = Span::seconds(5 * 60);
    /// The work queue refuses messages far above this (`topology`), so a window never meets that.
    const MAX_WINDOW: u32 = 10_000;
    const MAX_ATTEMPTS: u32 = 1_000;
    /// Counting what waits downstream takes the ledger a moment for each thousand.
    const MAX_DOWNSTREAM_LIMIT: u32 = 1_000_000;

    /// What a worker does with a batch, said or not.
    #[must_use]
    pub fn handler(&self) -> HandlerKind {
        self.handler.unwrap_or(if self.command.is_empty() {
            HandlerKind::Library
        } else {
            HandlerKind::Exec
        })
    }

    /// The delays between failed attempts.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.retry_base.get(), self.retry_cap.get())
    }

    /// How many batches may be out: enough for so many live slots and the look-ahead, within bounds.
    #[must_use]
    pub fn window(&self, slots: u32) -> u32 {
        let wanted = slots.saturating_mul(self.look_ahead);
        wanted.clamp(self.window_min, self.window_max)
    }

    pub(super) fn check(
        &self,
        name: &PipelineName,
        broker: &BrokerConfig,
    ) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::wrong(
                format!("pipelines.{name}.{key}"),
                problem,
            ))
        };
        self.check_exec(name)?;
        self.check_http(name)?;
        let timeout = broker.consumer_timeout;
        if self.deadline.get() + Self::BESIDES_DEADLINE.get() > timeout.get() {
            let besides = Self::BESIDES_DEADLINE;
            let problem = format!(
                "must satisfy deadline + {besides} <= broker.consumer_timeout: {} + {besides} > {timeout}; raise \
                 consumer_timeout in rabbitmq.conf and say so in broker.consumer_timeout",
                self.deadline
            );
            return wrong("deadline", problem);
        }
        if self.max_attempts == 0 || self.max_attempts > Self::MAX_ATTEMPTS {
            return wrong(
                "max_attempts",
                format!(
                    "must be 1 to {}, is {}",
                    Self::MAX_ATTEMPTS,
                    self.max_attempts
                ),
            );
        }
        if self.retry_base > self.retry_cap {
            return wrong(
                "retry_base",
                format!(
                    "must be at most retry_cap: {} > {}",
                    self.retry_base, self.retry_cap
                ),
            );
        }
        if self.window_min == 0
            || self.window_min > self.window_max
            || self.window_max > Self::MAX_WINDOW
        {
            let problem = format!(
                "must satisfy 1 <= window_min <= window_max <= {}: {} and {}",
                Self::MAX_WINDOW,
                self.window_min,
                self.window_max
            );
            return wrong("window_max", problem);
        }
        if self.look_ahead == 0 {
            return wrong(
                "look_ahead",
                "must be at least 1, or slots would stay empty".into(),
            );
        }
        if self.max_in_flight_per_key == Some(0) {
            return wrong(
                "max_in_flight_per_key",
                "must be at least 1, or nothing would ever run".into(),
            );
        }
        if self.downstream_limit == 0 || self.downstream_limit > Self::MAX_DOWNSTREAM_LIMIT {
            return wrong(
                "downstream_limit",
                format!(
                    "must be 1 to {}, is {}",
                    Self::MAX_DOWNSTREAM_LIMIT,
                    self.downstream_limit
                ),
            );
        }
        Ok(())
    }
}

/// Pipelines feed pipelines that there are, and never in a circle: full ones would wait for each other for ever.
pub(super) fn check_feeds(
    pipelines: &BTreeMap<PipelineName, PipelineConfig>,
) -> Result<(), ConfigError> {
    for (name, pipeline) in pipelines {
        let wrong = |problem| {
            Err(ConfigError::wrong(
                format!("pipelines.{name}.feeds"),
                problem,
            ))
        };
        let mut ahead: Vec<&PipelineName> = pipeline.feeds.iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = ahead.pop() {
            if next == name {
                return wrong(
                    "leads back to the pipeline itself: leave out one of the circle".into(),
                );
            }
            let Some(fed) = pipelines.get(next) else {
                return wrong(format!("names {next}, which is not configured"));
            };
            if seen.insert(next) {
                ahead.extend(&fed.feeds);
            }
        }
    }
    Ok(())
}
