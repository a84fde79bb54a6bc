//! An installation with the secrets and the configuration that deploy/compose/secrets.sh writes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::api::Api;
use harness::emulator::{Admin, NO_LIMITS, NO_QUOTAS};
use harness::truth::Sink;
use harness::{port, wait};
use tempfile::TempDir;

use crate::broker::{Broker, Size};
use crate::docker::{Container, Network, Options};
use crate::images;

/// A container of ours is ready within this.
const START_LIMIT: Duration = Duration::from_mins(2);
/// Longer than `worker.drain_timeout` of deploy/compose.
pub const GRACE_SECONDS: u32 = 90;
const SECRETS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../deploy/compose/secrets.sh"
);
/// What compose asks the coordinator, and a worker.
const COORDINATOR_HEALTH: [&str; 4] = [
    "/coordinator",
    "--config",
    "/run/secrets/coordinator.toml",
    "health",
];
const WORKER_HEALTH: [&str; 4] = ["/worker", "--config", "/run/secrets/worker.toml", "health"];
/// The emulator's clock.
const NOW: &str = "2026-03-01T18:00:00Z";

/// What is different from one test to the next.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// RabbitMQ's nodes.
    pub broker: Size,
    /// How many properties the emulator has; see [`property`].
    pub properties: u32,
    /// How long each of its answers takes.
    pub latency: Duration,
    /// Batches that a worker runs at once.
    pub slots: u32,
}

/// The emulator's property of this number.
#[must_use]
pub fn property(number: u32) -> String {
    format!("https://site-{number}.example/")
}

/// The containers of an installation.
#[derive(Debug)]
pub struct Installation {
    // Dropped in this order: who uses something goes before it.
    workers: BTreeMap<String, Container>,
    /// There is none while it is replaced.
    coordinator: Option<Container>,
    /// RabbitMQ.
    pub broker: Broker,
    _emulator: Container,
    _postgres: Container,
    network: Network,
    folder: TempDir,
    /// The coordinator's API.
    pub api: Api,
    /// The emulator's admin calls.
    pub emulator: Admin,
    ports: Ports,
    slots: u32,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    api: u16,
    emulator: u16,
    postgres: u16,
}

impl Installation {
    /// Starts all but the workers.
    pub async fn start(plan: Plan) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let network = Network::new()?;
        let ports = Ports {
            api: port::free(),
            emulator: port::free(),
            postgres: port::free(),
        };
        write_configuration(folder.path(), plan)?;
        let postgres = start_postgres(&network, folder.path(), ports.postgres)?;
        let emulator = start_emulator(&network, folder.path(), ports.emulator)?;
        let definitions = definitions(&network, folder.path())?;
        let broker = Broker::start(&network, folder.path(), plan.broker, &definitions).await?;
        if plan.broker == Size::Cluster {
            declare_topology(&network, folder.path())?;
        }
        let ready = ["pg_isready", "-U", "tidegate", "-d", "tidegate"];
        wait::until("PostgreSQL to be ready", START_LIMIT, async || {
            postgres.ensure_running()?;
            Ok(postgres.succeeds(&ready)?.then_some(()))
        })
        .await?;
        let token = secret(folder.path(), "api-token")?;
        let mut installation = Self {
            workers: BTreeMap::new(),
            api: Api::with_token(&format!("http://127.0.0.1:{}", ports.api), &token)?,
            emulator: Admin::new(&format!("http://127.0.0.1:{}", ports.emulator))?,
            coordinator: None,
            broker,
            _emulator: emulator,
            _postgres: postgres,
            network,
            folder,
            ports,
            slots: plan.slots,
        };
        installation
            .start_coordinator(&images::of("coordinator"))
            .await?;
        Ok(installation)
    }

    async fn start_coordinator(&mut self, image: &str) -> Result<()> {
        let secrets = ["coordinator.toml", "api-token", "api-read-token"];
        let options = Options::new()
            .confined()
            .with(&["--publish", &format!("127.0.0.1:{}:8420", self.ports.api)])
            .with(&mounts(self.folder.path(), &secrets));
        let command = ["--config", "/run/secrets/coordinator.toml"];
        let started = Container::run(&self.network, "coordinator", image, &options, &command)?;
        self.coordinator = Some(started);
        self.wait_for_coordinator().await
    }

    /// The coordinator.
    ///
    /// # Panics
    /// While it is replaced.
    #[must_use]
    pub fn coordinator(&self) -> &Container {
        self.coordinator.as_ref().expect("it is not being replaced")
    }

    /// Waits until the coordinator says that it is ready, by its own command and from outside.
    pub async fn wait_for_coordinator(&self) -> Result<()> {
        wait::until("the coordinator to be ready", START_LIMIT, async || {
            self.coordinator().ensure_running()?;
            let ready =
                self.coordinator().succeeds(&COORDINATOR_HEALTH)? && self.api.is_ready().await;
            Ok(ready.then_some(()))
        })
        .await
    }

    /// Puts another image in the coordinator's place.
    pub async fn replace_coordinator(&mut self, image: &str) -> Result<()> {
        if let Some(old) = self.coordinator.take() {
            let code = old.stop(GRACE_SECONDS)?;
            ensure!(code == 0, "the coordinator stopped with {code}");
        }
        self.start_coordinator(image).await
    }

    /// Starts a worker and waits until it takes batches.
    pub async fn start_worker(&mut self, name: &str) -> Result<()> {
        self.start_worker_of(&images::of("worker"), name).await
    }

    /// The same with another image.
    pub async fn start_worker_of(&mut self, image: &str, name: &str) -> Result<()> {
        let slots = format!("TIDEGATE_WORKER__SLOTS={}", self.slots);
        let options = Options::new()
            .confined()
            .with(&["--tmpfs", "/tmp", "--env", &slots])
            .with(&mounts(self.folder.path(), &["worker.toml"]))
            .with(&["--volume", &credentials(self.folder.path(), ":ro")]);
        let command = ["--config", "/run/secrets/worker.toml"];
        let worker = Container::run(&self.network, name, image, &options, &command)?;
        self.workers.insert(name.to_owned(), worker);
        self.wait_for_worker(name).await
    }

    /// Waits until a worker takes batches.
    pub async fn wait_for_worker(&self, name: &str) -> Result<()> {
        let worker = self.worker(name);
        wait::until("the worker to be ready", START_LIMIT, async || {
            worker.ensure_running()?;
            Ok(worker.succeeds(&WORKER_HEALTH)?.then_some(()))
        })
        .await
    }

    /// A worker.
    ///
    /// # Panics
    /// When none of this name was started.
    #[must_use]
    pub fn worker(&self, name: &str) -> &Container {
        self.workers.get(name).expect("a worker of this name")
    }

    /// The workers that were started and not removed.
    pub fn workers(&self) -> impl Iterator<Item = &Container> {
        self.workers.values()
    }

    /// Stops a worker and insists that it has drained.
    pub fn drain_worker(&mut self, name: &str) -> Result<()> {
        let worker = self.workers.remove(name).context("a worker of this name")?;
        let code = worker.stop(GRACE_SECONDS)?;
        let (_, words) = worker.logs()?;
        ensure!(code == 0, "{name} drained with {code}:\n{words}");
        Ok(())
    }

    /// Starts `tidegate` with these arguments.
    pub fn tidegate(&self, arguments: &[&str]) -> Result<Container> {
        let token = secret(self.folder.path(), "api-token")?;
        let options = Options::new()
            .confined()
            .with(&["--env", "TIDEGATE_URL=http://coordinator:8420"])
            .with(&["--env", &format!("TIDEGATE_TOKEN={token}")]);
        Container::run(
            &self.network,
            "cli",
            &images::of("cli"),
            &options,
            arguments,
        )
    }

    /// The sink, opened to be read.
    pub async fn sink(&self) -> Result<Sink> {
        let password = secret(self.folder.path(), "postgres-password")?;
        let port = self.ports.postgres;
        Sink::open(&format!(
            "postgres://tidegate:{password}@127.0.0.1:{port}/tidegate"
        ))
        .await
    }

    /// Passwords and tokens: nothing of Tidegate's own containers may show any of them.
    pub fn secrets(&self) -> Result<Vec<String>> {
        let names = [
            "tidegate-coordinator",
            "tidegate-worker",
            "postgres-password",
            "api-token",
        ];
        names
            .iter()
            .map(|name| secret(self.folder.path(), name))
            .collect()
    }
}

/// What `secrets.sh` makes, with the emulator in Google's place.
fn write_configuration(folder: &Path, plan: Plan) -> Result<()> {
    let secrets = folder.join("secrets");
    let made = Command::new(SECRETS)
        .arg(&secrets)
        .status()
        .context(SECRETS)?;
    ensure!(made.success(), "{SECRETS} ended with {made}");
    let search_console = format!(
        "[search_console]\nendpoint = \"http://emulator:8500\"\ncredentials = \"/credentials/key.json\"\n\
         now = \"{NOW}\"\n{NO_LIMITS}"
    );
    for name in ["coordinator.toml", "worker.toml"] {
        let file = secrets.join(name);
        let text = fs::read_to_string(&file)?;
        fs::remove_file(&file)?;
        fs::write(&file, format!("{text}\n{search_console}"))?;
    }
    // The topology's user, who alone may declare it.
    let password = secret(folder, "tidegate-topology")?;
    let topology =
        format!("[broker]\nurl = \"amqp://tidegate-topology:{password}@rabbitmq:5672/tidegate\"\n");
    fs::write(secrets.join("topology.toml"), topology)?;

    let mut emulator = format!(
        "now = \"{NOW}\"\n{NO_QUOTAS}[latency]\nmode = \"fixed\"\nms = {}\n",
        plan.latency.as_millis()
    );
    for number in 0..plan.properties {
        let url = property(number);
        writeln!(
            emulator,
            "[[sites]]\nurl = \"{url}\"\npermission = \"siteOwner\""
        )?;
    }
    fs::write(folder.join("emulator.toml"), emulator)?;
    let credentials = folder.join("credentials");
    fs::create_dir(&credentials)?;
    // Written by the emulator's user, whom this machine does not know.
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o777))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn secret(folder: &Path, name: &str) -> Result<String> {
    let file: PathBuf = folder.join("secrets").join(name);
    fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// Arguments that mount single secrets, as compose does.
fn mounts<'a>(folder: &Path, names: &[&'a str]) -> Vec<String> {
    let one = |name: &&'a str| {
        let file = folder.join("secrets").join(name);
        let mount = format!("{}:/run/secrets/{name}:ro", file.display());
        ["--volume".to_owned(), mount]
    };
    names.iter().flat_map(one).collect()
}

fn credentials(folder: &Path, mode: &str) -> String {
    format!(
        "{}:/credentials{mode}",
        folder.join("credentials").display()
    )
}

fn start_postgres(network: &Network, folder: &Path, port: u16) -> Result<Container> {
    let options = Options::new()
        .with(&[
            "--env",
            "POSTGRES_USER=tidegate",
            "--env",
            "POSTGRES_DB=tidegate",
        ])
        .with(&[
            "--env",
            "POSTGRES_PASSWORD_FILE=/run/secrets/postgres-password",
        ])
        .with(&["--publish", &format!("127.0.0.1:{port}:5432")])
        .with(&mounts(folder, &["postgres-password"]));
    Container::run(network, "postgres", images::POSTGRES, &options, &[])
}

fn start_emulator(network: &Network, folder: &Path, port: u16) -> Result<Container> {
    let config = folder.join("emulator.toml");
    let options = Options::new()
        .confined()
        .with(&["--publish", &format!("127.0.0.1:{port}:8500")])
        .with(&[
            "--volume",
            &format!("{}:/config/emulator.toml:ro", config.display()),
        ])
        .with(&["--volume", &credentials(folder, "")]);
    let command = [
        "--config",
        "/config/emulator.toml",
        "--listen",
        "0.0.0.0:8500",
        "--public-url",
        "http://emulator:8500",
        "--write-credentials",
        "/credentials/key.json",
    ];
    Container::run(
        network,
        "emulator",
        &images::of("emulator"),
        &options,
        &command,
    )
}

/// What the broker is to import, as the coordinator's image writes it.
fn definitions(network: &Network, folder: &Path) -> Result<String> {
    let users =
        ["topology", "coordinator", "worker", "monitor"].map(|role| format!("tidegate-{role}"));
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    let options = Options::new()
        .confined()
        .with(&mounts(
            folder,
            &["coordinator.toml", "api-token", "api-read-token"],
        ))
        .with(&mounts(folder, &names));
    let command = [
        "--config",
        "/run/secrets/coordinator.toml",
        "topology",
        "definitions",
        "--passwords",
        "/run/secrets",
    ];
    finished(network, "definitions", &options, &command)
}

fn declare_topology(network: &Network, folder: &Path) -> Result<()> {
    let options = Options::new()
        .confined()
        .with(&mounts(folder, &["topology.toml"]));
    let command = [
        "--config",
        "/run/secrets/topology.toml",
        "topology",
        "declare",
    ];
    finished(network, "topology", &options, &command).map(drop)
}

/// Runs a command of the coordinator's image to its end, and gives what it printed.
fn finished(network: &Network, alias: &str, options: &Options, command: &[&str]) -> Result<String> {
    let container = Container::run(network, alias, &images::of("coordinator"), options, command)?;
    let code = container.wait()?;
    let (stdout, stderr) = container.logs()?;
    ensure!(code == 0, "{alias} ended with {code}:\n{stdout}{stderr}");
    Ok(stdout)
}
