//! Docker's engine, by its command line.

use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use rand::RngExt;

/// Names the run of the suite, for [`label`].
pub const RUN_VARIABLE: &str = "TIDEGATE_TEST_RUN";
/// Lines of a container's output that are shown when its test fails.
const TAIL: &str = "60";

/// What everything here is labelled with, so that it can be found and removed.
#[must_use]
pub fn label() -> String {
    let run = std::env::var(RUN_VARIABLE);
    format!("dev.tidegate.test={}", run.as_deref().unwrap_or("by-hand"))
}

/// A name that nothing else has.
#[must_use]
pub fn run_name() -> String {
    format!("tidegate-test-{:08x}", rand::rng().random::<u32>())
}

/// Runs a `docker` command and returns what it printed, without the last newline.
pub fn docker<A: AsRef<str>>(arguments: &[A]) -> Result<String> {
    let output = output(arguments)?;
    if !output.status.success() {
        bail!(
            "docker {} ended with {}: {}",
            shown(arguments),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = String::from_utf8(output.stdout).context("docker printed no UTF-8")?;
    Ok(text.trim_end().to_owned())
}

/// The same, whatever it ends with.
pub fn output<A: AsRef<str>>(arguments: &[A]) -> Result<Output> {
    Command::new("docker")
        .args(arguments.iter().map(AsRef::as_ref))
        .output()
        .with_context(|| format!("docker {}", shown(arguments)))
}

fn shown<A: AsRef<str>>(arguments: &[A]) -> String {
    let words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    words.join(" ")
}

/// A network of a test's own.
#[derive(Debug)]
pub struct Network {
    /// Its name, with which the names of its containers begin.
    pub name: String,
}

impl Network {
    /// A new one.
    pub fn new() -> Result<Self> {
        let name = run_name();
        docker(&["network", "create", "--label", &label(), &name])?;
        Ok(Self { name })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = docker(&["network", "rm", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// How a container is run: what stands between `docker run` and the image.
#[derive(Debug, Clone, Default)]
pub struct Options(Vec<String>);

impl Options {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds arguments of `docker run`.
    #[must_use]
    pub fn with<A: AsRef<str>>(mut self, arguments: &[A]) -> Self {
        let arguments = arguments
            .iter()
            .map(|argument| argument.as_ref().to_owned());
        self.0.extend(arguments);
        self
    }

    /// What deploy/compose has for Tidegate's own containers: nothing can be written, nothing more can be had.
    #[must_use]
    pub fn confined(self) -> Self {
        self.with(&["--read-only", "--cap-drop", "ALL"])
            .with(&["--security-opt", "no-new-privileges"])
    }
}

/// A container. Dropping it removes it, after its last words if the test has failed.
#[derive(Debug)]
pub struct Container {
    /// Its name, for the engine.
    pub name: String,
    network: String,
    /// Its name in the network.
    pub alias: String,
}

impl Container {
    /// Runs an image in the background, known as `alias` in the network.
    pub fn run(
        network: &Network,
        alias: &str,
        image: &str,
        options: &Options,
        command: &[&str],
    ) -> Result<Self> {
        let name = format!("{}-{alias}", network.name);
        let label = label();
        let mut arguments = vec!["run", "--detach", "--label", &label, "--name", &name];
        arguments.extend(["--network", &network.name, "--network-alias", alias]);
        arguments.extend(options.0.iter().map(String::as_str));
        arguments.push(image);
        arguments.extend(command);
        // Before it runs: a container that could not start is there all the same.
        let container = Self {
            name: name.clone(),
            network: network.name.clone(),
            alias: alias.to_owned(),
        };
        docker(&arguments)?;
        Ok(container)
    }

    /// Kills it, as the end of its machine would.
    pub fn kill(&self) -> Result<()> {
        docker(&["kill", &self.name]).map(drop)
    }

    /// Freezes all its processes.
    pub fn pause(&self) -> Result<()> {
        docker(&["pause", &self.name]).map(drop)
    }

    /// Lets them go on.
    pub fn unpause(&self) -> Result<()> {
        docker(&["unpause", &self.name]).map(drop)
    }

    /// Takes it off the network: nothing that it sends arrives, and nobody is told.
    pub fn disconnect(&self) -> Result<()> {
        docker(&["network", "disconnect", &self.network, &self.name]).map(drop)
    }

    /// Puts it back.
    pub fn connect(&self) -> Result<()> {
        let [alias, network] = [&self.alias, &self.network];
        docker(&["network", "connect", "--alias", alias, network, &self.name]).map(drop)
    }

    /// SIGTERM, SIGKILL if that was not heeded for so many seconds, and a start.
    pub fn restart(&self, seconds: u32) -> Result<()> {
        docker(&["restart", "--time", &seconds.to_string(), &self.name]).map(drop)
    }

    /// Starts it again.
    pub fn start(&self) -> Result<()> {
        docker(&["start", &self.name]).map(drop)
    }

    /// SIGTERM, SIGKILL if that was not heeded for so many seconds; gives the exit code.
    pub fn stop(&self, seconds: u32) -> Result<i32> {
        docker(&["stop", "--time", &seconds.to_string(), &self.name])?;
        self.wait()
    }

    /// Waits for its end and gives the exit code.
    pub fn wait(&self) -> Result<i32> {
        let code = docker(&["wait", &self.name])?;
        code.parse().with_context(|| format!("{code} is no code"))
    }

    /// Runs a command in it, and gives what that printed.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", self.name.as_str()];
        arguments.extend(command);
        docker(&arguments)
    }

    /// Whether a command in it succeeds.
    pub fn succeeds(&self, command: &[&str]) -> Result<bool> {
        let mut arguments = vec!["exec", self.name.as_str()];
        arguments.extend(command);
        Ok(output(&arguments)?.status.success())
    }

    /// What it printed: standard output, and standard error.
    pub fn logs(&self) -> Result<(String, String)> {
        let printed = output(&["logs", &self.name])?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&printed.stdout), text(&printed.stderr)))
    }

    /// What the engine knows of it, by a template such as `{{.State.Running}}`.
    pub fn inspect(&self, template: &str) -> Result<String> {
        docker(&["inspect", "--format", template, &self.name])
    }

    /// Insists that it runs.
    pub fn ensure_running(&self) -> Result<()> {
        if self.inspect("{{.State.Running}}")? != "true" {
            let (stdout, stderr) = self.logs()?;
            bail!("{} has ended:\n{stdout}{stderr}", self.name);
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(said) = output(&["logs", "--tail", TAIL, &self.name])
        {
            eprintln!(
                "--- last words of {}:\n{}{}---",
                self.name,
                String::from_utf8_lossy(&said.stdout),
                String::from_utf8_lossy(&said.stderr)
            );
        }
        if let Err(error) = docker(&["rm", "--force", "--volumes", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}
