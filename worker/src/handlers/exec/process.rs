//! A process with a group of its own, of which nothing survives its owner.

use std::io;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::bounds::Bounds;
use super::{GRACE, REAP};

/// A running command and everything that it starts within its group.
#[derive(Debug)]
pub(super) struct Process {
    leader: Child,
    bounds: Bounds,
    /// Gone once the group was killed: from then on its number may be another group's.
    group: Option<Pid>,
}

/// The three ends that are ours.
pub(super) struct Pipes {
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

impl Process {
    pub(super) fn spawn(mut command: Command, bounds: Bounds) -> io::Result<Self> {
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let leader = bounds.spawn(&mut command)?;
        let pid = leader.id().and_then(|pid| i32::try_from(pid).ok());
        Ok(Self {
            leader,
            bounds,
            group: pid.map(Pid::from_raw),
        })
    }

    /// # Panics
    /// When called twice.
    pub(super) fn take_pipes(&mut self) -> Pipes {
        let piped = "all three are piped and were not taken yet";
        Pipes {
            stdin: self.leader.stdin.take().expect(piped),
            stdout: self.leader.stdout.take().expect(piped),
            stderr: self.leader.stderr.take().expect(piped),
        }
    }

    /// Waits for the command itself. Call [`Self::kill`] right after it: only as long as something of the
    /// group is left does its number certainly belong to it.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.leader.wait().await
    }

    /// How the command has ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.leader.try_wait().ok().flatten()
    }

    /// Lets it use CPU time for one more batch.
    pub(super) fn grant_cpu(&self) -> io::Result<()> {
        self.bounds.grant_cpu(&self.leader)
    }

    /// Ends the whole group: asks first, and does not ask again after [`GRACE`].
    pub(super) async fn stop(&mut self) {
        self.terminate();
        let _ = timeout(GRACE, self.wait()).await;
        self.kill();
        let _ = timeout(REAP, self.wait()).await;
    }

    /// Asks the whole group to end.
    pub(super) fn terminate(&self) {
        if let Some(group) = self.group {
            // It may be gone already, which is what is wanted.
            let _ = killpg(group, Signal::SIGTERM);
        }
    }

    /// Ends the whole group, or what is left of it.
    pub(super) fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
