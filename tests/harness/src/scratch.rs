//! A temporary folder, and a watchdog that cleans it up.
//!
//! Rust runs no destructors for statics, nor for anybody when a process is killed; a broker left behind
//! would live for ever. So a small shell process waits at the end of a pipe that only this process holds:
//! when the pipe closes, whyever, it stops every process that was registered and removes the folder.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::wait;

/// Set it to anything to keep the folders.
const KEEP: &str = "TIDEGATE_TEST_KEEP";

/// `$1` is the folder, `$2` non-empty to keep its files. Each file in `pids` is named after a process
/// group and holds the signal that ends it; what is still there after 5 s is killed.
const WATCHDOG: &str = r#"
read -r _
each() { for file in "$1"/pids/*; do [ -e "$file" ] && printf '%s %s\n' "${file##*/}" "$(cat "$file")"; done; }
each "$1" | while read -r group signal; do kill -s "$signal" -- "-$group" 2>/dev/null; done
each "$1" | while read -r group _; do
  for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 -- "-$group" 2>/dev/null || break; sleep 0.5; done
  kill -s KILL -- "-$group" 2>/dev/null
done
[ -n "$2" ] || rm -rf -- "$1"
"#;

/// A folder that goes away with everything that runs in it.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    watchdog: Child,
    /// Closing it wakes the watchdog.
    lifeline: Option<ChildStdin>,
}

impl Scratch {
    /// A new empty folder, readable by other users, because PostgreSQL refuses to run as root.
    pub fn new(name: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("tidegate-{name}-"))
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .context("creating a temporary folder")?
            .keep();
        fs::create_dir(folder.join("pids"))?;
        let keep = std::env::var_os(KEEP).unwrap_or_default();
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "tidegate-watchdog"])
            .arg(&folder)
            .arg(keep)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal goes to the whole foreground group and must not reach the watchdog.
            .process_group(0)
            .spawn()
            .context("starting the watchdog")?;
        let lifeline = watchdog.stdin.take();
        Ok(Self {
            folder,
            watchdog,
            lifeline,
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Starts a process in a group of its own, with its output in `log`; `ending` is the signal by which the
    /// watchdog ends it.
    pub fn spawn(&self, mut command: Command, log: &Path, ending: Signal) -> Result<Process> {
        let output = fs::File::options().create(true).append(true).open(log)?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let registration = self.folder.join("pids").join(child.id().to_string());
        fs::write(&registration, ending.as_str().trim_start_matches("SIG"))?;
        Ok(Process {
            child,
            registration,
            log: log.to_owned(),
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.lifeline = None;
        self.watchdog.wait().ok();
        if self.folder.exists() {
            eprintln!("kept {}", self.folder.display());
        }
    }
}

/// A running process of a [`Scratch`] folder. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    registration: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its output: standard output and standard error.
    pub fn output(&self) -> Result<String> {
        let mut text = Vec::new();
        fs::File::open(&self.log)?.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The last lines of its output.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let output = self.output().unwrap_or_default();
        let all: Vec<&str> = output.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid()?, signal).with_context(|| format!("sending {signal} to {}", self.id()))
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.forget();
        }
        Ok(status)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("process {} to end", self.id());
        wait::until_blocking(&what, limit, || self.exited())
    }

    /// Kills it and everything in its group, and reaps it.
    pub fn kill(&mut self) -> Result<()> {
        if self.exited()?.is_some() {
            return Ok(());
        }
        killpg(self.pid()?, Signal::SIGKILL).ok();
        self.child.wait()?;
        self.forget();
        Ok(())
    }

    /// Processor time that it has used, over all its threads.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.id());
        let stat = fs::read_to_string(&path).context(path)?;
        // The name in parentheses may hold anything; user and system time are the 12th and 13th after it.
        let (_, fields) = stat.rsplit_once(") ").context("no name")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let ticks = ticks.sum::<Result<u64, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(Duration::from_millis(
            ticks * 1_000 / u64::try_from(per_second)?,
        ))
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.id())?))
    }

    /// Once reaped, the number may become somebody else's.
    fn forget(&self) {
        match fs::remove_file(&self.registration) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                eprintln!("{}: {error}", self.registration.display());
            }
            _ => {}
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("process {} could not be stopped: {error:#}", self.id());
        }
    }
}
