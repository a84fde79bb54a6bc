//! deploy/compose as it stands, with images that are there.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use harness::port;
use tempfile::TempDir;

use crate::docker::{RUN_VARIABLE, docker, run_name};
use crate::images;

/// Compose itself, where this machine has none.
const COMPOSE_IMAGE: &str = "tidegate-test/compose:2";
/// Where the API is published, for compose.yaml.
const PORT_VARIABLE: &str = "TIDEGATE_TEST_PORT";
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
const CHANGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compose.yaml");

/// A project of compose, with the profile `demo`. Dropping it takes it down, volumes and all.
#[derive(Debug)]
pub struct Project {
    name: String,
    folder: TempDir,
    port: u16,
}

impl Project {
    /// A copy of deploy/ with secrets of its own; nothing runs yet.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let copied = Command::new("cp")
            .args(["-r", DEPLOY, CHANGES])
            .arg(folder.path())
            .status()?;
        ensure!(copied.success(), "cannot copy {DEPLOY}: {copied}");
        let compose = folder.path().join("deploy/compose");
        // Those of whoever runs this are not needed.
        fs::remove_dir_all(compose.join("secrets")).ok();
        let made = Command::new(compose.join("secrets.sh"))
            .arg("--demo")
            .status()?;
        ensure!(made.success(), "secrets.sh ended with {made}");
        Ok(Self {
            name: run_name(),
            folder,
            port: port::free(),
        })
    }

    /// Runs a command of compose and gives what it printed.
    pub fn compose(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        ensure!(
            output.status.success(),
            "compose {arguments:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    fn output(&self, arguments: &[&str]) -> Result<Output> {
        let folder = self.folder.path();
        let mut command = if is_installed() {
            let mut command = Command::new("docker");
            command.arg("compose");
            command
        } else {
            // The same paths inside as outside: the engine mounts what it is told to.
            in_a_container(folder, self.port)
        };
        command
            .args(["--project-name", &self.name, "--profile", "demo"])
            .args(["--file", "deploy/compose/compose.yaml"])
            .args(["--file", "compose.yaml"])
            .args(arguments)
            .env(PORT_VARIABLE, self.port.to_string())
            .current_dir(folder);
        command.output().context("docker compose")
    }

    /// Runs `tidegate` in the project's network, and gives what it printed.
    pub fn tidegate(&self, arguments: &[&str]) -> Result<String> {
        let (network, image) = (format!("{}_inner", self.name), images::of("cli"));
        let token = format!("TIDEGATE_TOKEN={}", self.secret("api-token")?);
        let mut all = vec!["run", "--rm", "--read-only", "--network", &network];
        all.extend(["--env", "TIDEGATE_URL=http://coordinator:8420"]);
        all.extend(["--env", &token, &image]);
        all.extend(arguments);
        docker(&all)
    }

    /// One value out of the database.
    pub fn query(&self, query: &str) -> Result<String> {
        let password = format!("PGPASSWORD={}", self.secret("postgres-password")?);
        let mut arguments = vec!["exec", "-T", "--env", &password, "postgres", "psql"];
        arguments.extend(["-U", "tidegate", "-d", "tidegate", "-At", "-c", query]);
        self.compose(&arguments)
    }

    /// How many workers say that they are healthy.
    pub fn healthy_workers(&self) -> Result<usize> {
        let listed = self.compose(&["ps", "--format", "{{.Health}}", "worker"])?;
        Ok(listed.lines().filter(|line| *line == "healthy").count())
    }

    fn secret(&self, name: &str) -> Result<String> {
        let file = self.folder.path().join("deploy/compose/secrets").join(name);
        fs::read_to_string(&file).with_context(|| file.display().to_string())
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(said) = self.output(&["logs", "--tail", "40", "--no-color"])
        {
            eprintln!("{}", String::from_utf8_lossy(&said.stdout));
        }
        if let Err(error) = self.compose(&["down", "--volumes", "--timeout", "5"]) {
            eprintln!("{error:#}");
        }
    }
}

fn is_installed() -> bool {
    let version = Command::new("docker").args(["compose", "version"]).output();
    version.is_ok_and(|output| output.status.success())
}

fn in_a_container(folder: &Path, port: u16) -> Command {
    let folder = folder.display();
    let mut command = Command::new("docker");
    command
        .args(["run", "--rm"])
        .args(["--volume", "/var/run/docker.sock:/var/run/docker.sock"])
        .args(["--volume", &format!("{folder}:{folder}")])
        .args(["--workdir", &folder.to_string()])
        .args(["--env", &format!("{PORT_VARIABLE}={port}")]);
    // Handed on as they are here, if they are.
    for variable in [
        images::TAG_VARIABLE,
        images::RABBITMQ_VARIABLE,
        RUN_VARIABLE,
    ] {
        command.args(["--env", variable]);
    }
    command.arg(COMPOSE_IMAGE);
    command
}
