//! One installation of Tidegate: a virtual host, a coordinator, workers, their databases.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::api::{self, Api};
use crate::emulator::{self, Emulator};
use crate::port;
use crate::processes::{self, Environment, Service};
use crate::rabbitmq::{RabbitMq, Vhost};
use crate::scratch::Scratch;
use crate::truth::Sink;
use crate::wait;

/// A coordinator or worker is up within this.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Longest run of one command: a test that waits for ever tells nobody what it waits for.
const COMMAND_LIMIT: Duration = Duration::from_mins(5);

/// An installation whose parts a test starts, kills and asks.
#[derive(Debug)]
pub struct Stack<'a> {
    // Fields are dropped in this order: processes before the virtual host, the folder last.
    workers: BTreeMap<String, Service>,
    coordinator: Option<Service>,
    /// The coordinator's API, whether or not it runs just now.
    pub api: Api,
    /// Configuration of everything that is started from now on.
    pub environment: Environment,
    vhost: Vhost<'a>,
    scratch: Scratch,
}

/// What a command of the `tidegate` CLI printed, and how it ended.
#[derive(Debug)]
pub struct Answer {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// The one JSON document on standard output.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON document: {self:?}"))
    }
}

impl<'a> Stack<'a> {
    /// An installation on a virtual host of its own, with SQLite files. Nothing runs yet. `pipelines` is
    /// the part of `tidegate.toml` that only files can say: `[pipelines.…]` sections.
    pub fn new(broker: &'a RabbitMq, pipelines: &str) -> Result<Self> {
        let scratch = Scratch::new("stack")?;
        let vhost = broker.new_vhost()?;
        std::fs::write(scratch.path().join("tidegate.toml"), pipelines)?;
        let listen = format!("127.0.0.1:{}", port::free());
        let environment = Environment::from(
            [
                ("TIDEGATE_BROKER__URL", vhost.url()),
                ("TIDEGATE_API__LISTEN", listen.clone()),
                (
                    "TIDEGATE_DATA_DIR",
                    scratch.path().join("data").display().to_string(),
                ),
                ("TIDEGATE_LOG", "info".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let api = Api::new(&format!("http://{listen}"))?;
        Ok(Self {
            workers: BTreeMap::new(),
            coordinator: None,
            api,
            environment,
            vhost,
            scratch,
        })
    }

    /// Sets one variable for everything that is started from now on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.insert(name.to_owned(), value.into());
    }

    /// Starts an emulator in this installation's folder and points workers at it.
    pub async fn start_emulator(&mut self, config: &str) -> Result<Emulator> {
        let emulator = Emulator::start(&self.scratch, config)?;
        let now = emulator.admin.now().await?;
        self.environment
            .extend(emulator::environment(&emulator, &now));
        Ok(emulator)
    }

    /// Starts the coordinator and waits until it is ready.
    pub async fn start_coordinator(&mut self) -> Result<()> {
        self.spawn_coordinator()?;
        let (api, service) = (&self.api, &mut self.coordinator);
        wait::until("the coordinator to be ready", START_LIMIT, async || {
            service
                .as_mut()
                .context("it was started")?
                .ensure_running()?;
            Ok(api.is_ready().await.then_some(()))
        })
        .await
    }

    /// Starts the coordinator and does not wait.
    pub fn spawn_coordinator(&mut self) -> Result<&mut Service> {
        self.coordinator = None;
        let started = Service::start(
            &self.scratch,
            "coordinator",
            "coordinator",
            &self.environment,
        )?;
        Ok(self.coordinator.insert(started))
    }

    /// Starts a worker and waits until the coordinator knows it.
    pub async fn start_worker(&mut self, name: &str) -> Result<()> {
        self.start_worker_of("worker", name).await
    }

    /// The same with another program: one that has handlers of its own.
    pub async fn start_worker_of(&mut self, program: &str, name: &str) -> Result<()> {
        // Workers that were killed are known for a while longer, so counting would not do.
        let before = self.known_workers().await?;
        self.spawn_worker_of(program, name)?;
        wait::until("the worker to be known", START_LIMIT, async || {
            self.worker(name).ensure_running()?;
            let known = self.known_workers().await?;
            Ok((!known.is_subset(&before)).then_some(()))
        })
        .await
    }

    async fn known_workers(&self) -> Result<BTreeSet<String>> {
        let workers = self.api.workers().await?;
        Ok(workers
            .iter()
            .map(|worker| worker.worker.to_string())
            .collect())
    }

    /// Starts a worker and does not wait.
    pub fn spawn_worker(&mut self, name: &str) -> Result<&mut Service> {
        self.spawn_worker_of("worker", name)
    }

    /// The same with another program: one that has handlers of its own.
    pub fn spawn_worker_of(&mut self, program: &str, name: &str) -> Result<&mut Service> {
        self.workers.remove(name);
        let started = Service::start(&self.scratch, program, name, &self.environment)?;
        Ok(self.workers.entry(name.to_owned()).or_insert(started))
    }

    /// The coordinator.
    ///
    /// # Panics
    /// When it was not started.
    pub fn coordinator(&mut self) -> &mut Service {
        self.coordinator
            .as_mut()
            .expect("the coordinator was started")
    }

    /// A worker.
    ///
    /// # Panics
    /// When none of this name was started.
    pub fn worker(&mut self, name: &str) -> &mut Service {
        self.workers
            .get_mut(name)
            .expect("a worker of this name was started")
    }

    /// Where a worker answers probes and scrapes, as its log says.
    pub fn worker_url(&mut self, name: &str) -> Result<String> {
        let worker = self.worker(name);
        worker.wait_for_line("worker starts", START_LIMIT)?;
        let output = worker.output()?;
        let starts = output.lines().rev().filter(|l| l.contains("worker starts"));
        let mut words = starts.flat_map(str::split_whitespace);
        let url = words.find_map(|word| word.strip_prefix("health="));
        url.map(str::to_owned)
            .context("the worker does not say where")
    }

    /// The sum of a worker's metric over its labels; nothing if it was never counted.
    pub async fn worker_metric(&mut self, name: &str, metric: &str) -> Result<Option<f64>> {
        let url = self.worker_url(name)?;
        api::metric(&reqwest::Client::new(), &url, metric, &[]).await
    }

    /// The virtual host.
    #[must_use]
    pub fn vhost(&self) -> &Vhost<'a> {
        &self.vhost
    }

    /// The folder: configuration, data, logs.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The sink, opened to be read.
    pub async fn sink(&self) -> Result<Sink> {
        let default = || {
            format!(
                "sqlite://{}/results.db",
                self.environment["TIDEGATE_DATA_DIR"]
            )
        };
        let url = self
            .environment
            .get("TIDEGATE_SINK__URL")
            .cloned()
            .unwrap_or_else(default);
        Sink::open(&url).await
    }

    /// The ledger's file, opened to be read.
    pub async fn ledger(&self) -> Result<Sink> {
        let data = &self.environment["TIDEGATE_DATA_DIR"];
        Sink::open(&format!("sqlite://{data}/ledger.db")).await
    }

    /// Runs `tidegate` with these arguments, without a terminal, and waits for its end.
    pub async fn tidegate(&self, arguments: &[&str]) -> Result<Answer> {
        self.start_tidegate(arguments)?.await?
    }

    /// Runs `tidegate` in the background, while the test does something to the rest.
    pub fn start_tidegate(&self, arguments: &[&str]) -> Result<JoinHandle<Result<Answer>>> {
        let mut command = tokio::process::Command::from(self.tidegate_command(arguments)?);
        command.stdin(Stdio::null()).kill_on_drop(true);
        Ok(tokio::spawn(async move {
            let output = timeout(COMMAND_LIMIT, command.output())
                .await
                .context("tidegate did not end")?
                .context("running tidegate")?;
            Ok(Answer {
                code: output.status.code().context("tidegate was killed")?,
                stdout: String::from_utf8(output.stdout)?,
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            })
        }))
    }

    /// The same command, to be started by the caller.
    pub fn tidegate_command(&self, arguments: &[&str]) -> Result<Command> {
        let environment =
            Environment::from([("TIDEGATE_URL".to_owned(), self.api.url().to_owned())]);
        let mut command = processes::command("tidegate", self.scratch.path(), &environment)?;
        command.args(arguments);
        Ok(command)
    }
}
