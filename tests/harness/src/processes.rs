//! Real coordinators and workers: started with a configuration, watched, signalled, measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::scratch::{Process, Scratch};
use crate::wait;

/// Lines of output that are shown when something is wrong.
const TAIL: usize = 40;

/// Environment of a Tidegate program: `TIDEGATE_…` and whatever else a test wants.
pub type Environment = BTreeMap<String, String>;

/// Names the folder of Tidegate's programs, for tests of other workspaces.
const PROGRAMS_VARIABLE: &str = "TIDEGATE_PROGRAMS";

/// The program built by this workspace, in the profile of the test that asks; or that of an absolute path.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = programs()?.join(name);
    if !path.is_file() {
        bail!(
            "{} is not built: run ./tests/run.sh, or cargo build --workspace with this profile; in another workspace, \
             name the folder of Tidegate's programs in {PROGRAMS_VARIABLE}",
            path.display()
        );
    }
    Ok(path)
}

fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(PROGRAMS_VARIABLE) {
        return Ok(folder.into());
    }
    let mut folder = std::env::current_exe()?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}

/// A command for a program of this workspace that sees no configuration but `environment`.
pub fn command(name: &str, folder: &Path, environment: &Environment) -> Result<Command> {
    let mut command = Command::new(program(name)?);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(variable);
        }
    }
    command.current_dir(folder).envs(environment);
    Ok(command)
}

/// A running coordinator, worker or emulator. Dropping it kills it, and shows its last words if the test
/// failed.
#[derive(Debug)]
pub struct Service {
    name: String,
    process: Process,
}

impl Service {
    /// Starts `program` in `scratch`; `name` tells it from others of its kind.
    pub fn start(
        scratch: &Scratch,
        program: &str,
        name: &str,
        environment: &Environment,
    ) -> Result<Self> {
        let command = command(program, scratch.path(), environment)?;
        Self::start_command(scratch, command, name)
    }

    /// Starts a prepared command.
    pub fn start_command(scratch: &Scratch, command: Command, name: &str) -> Result<Self> {
        let log = scratch.path().join(format!("{name}.log"));
        let process = scratch.spawn(command, &log, Signal::SIGKILL)?;
        Ok(Self {
            name: name.to_owned(),
            process,
        })
    }

    /// The name that it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it printed so far, on both streams; of earlier processes of the same name too.
    pub fn output(&self) -> Result<String> {
        self.process.output()
    }

    /// Waits until it has printed a line with `text` in it, and returns that line.
    pub fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<String> {
        let what = format!("{} to print {text:?}", self.name);
        wait::until_blocking(&what, limit, || {
            let output = self.process.output()?;
            if let Some(line) = output.lines().find(|line| line.contains(text)) {
                return Ok(Some(line.to_owned()));
            }
            self.ensure_running()?;
            Ok(None)
        })
    }

    /// An error, with its last words, if it has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.process.exited()? {
            bail!(
                "{} ended with {status}:\n{}",
                self.name,
                self.process.tail(TAIL)
            );
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it as a crash of the machine would, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Asks it to stop, and waits for its exit.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits for its exit.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        self.process.wait(limit).with_context(|| {
            format!(
                "{name} does not end; its last words:\n{}",
                self.process.tail(TAIL)
            )
        })
    }

    /// Waits for its exit and returns the exit code.
    pub fn exit_code(&mut self, limit: Duration) -> Result<i32> {
        let status = self.wait(limit)?;
        status
            .code()
            .with_context(|| format!("{} ended with {status}", self.name))
    }

    /// Processor time that it has used, over all its threads.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.process.cpu_time()
    }

    /// Its memory now and at its peak.
    pub fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(&path).context(path)?;
        let bytes = |field: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
            Ok(kib.with_context(|| format!("no {field}"))?.parse::<u64>()? * 1024)
        };
        Ok(Memory {
            resident: bytes("VmRSS")?,
            peak: bytes("VmHWM")?,
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- last words of {}:\n{}\n---",
                self.name,
                self.process.tail(TAIL)
            );
        }
    }
}

/// A process's memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Most that ever was resident.
    pub peak: u64,
}
