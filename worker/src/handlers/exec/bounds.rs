//! What a command may use. Set on its process from outside, right after it was started and before it gets
//! any payload: what it does in the first microseconds of its life is not covered, what it does with a
//! batch is. Children inherit the limits, each counts for itself.

use std::io;

use shared::config::{PipelineConfig, Size, Span};
use tokio::process::{Child, Command};

/// What each process of a command may use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    memory: Option<Size>,
    cpu: Option<Span>,
    allow_new_privileges: bool,
}

impl Bounds {
    pub(super) fn new(config: &PipelineConfig) -> Self {
        Self {
            memory: config.memory_limit,
            cpu: config.cpu_limit,
            allow_new_privileges: config.allow_new_privileges,
        }
    }
}

#[cfg(target_os = "linux")]
impl Bounds {
    /// Starts the command with its limits. `no_new_privs` is a thread's and inherited, so a thread that gave
    /// new privileges up starts it.
    pub(super) fn spawn(self, command: &mut Command) -> io::Result<Child> {
        let mut child = if self.allow_new_privileges {
            command.spawn()?
        } else {
            let runtime = tokio::runtime::Handle::current();
            let spawn = || {
                let _entered = runtime.enter();
                rustix::thread::set_no_new_privs(true)?;
                command.spawn()
            };
            let spawned = std::thread::scope(|scope| scope.spawn(spawn).join());
            spawned.unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))?
        };
        if let Err(error) = self.apply(&child) {
            let _ = child.start_kill();
            return Err(error);
        }
        Ok(child)
    }

    fn apply(self, child: &Child) -> io::Result<()> {
        use rustix::process::Resource;

        // A crash is reported, not kept.
        linux::set(child, Resource::Core, 0, Some(0))?;
        if let Some(memory) = self.memory {
            linux::set(child, Resource::As, memory.bytes(), Some(memory.bytes()))?;
        }
        self.grant_cpu(child)
    }

    /// Lets the process use CPU time for one more batch, whatever it has used before.
    pub(super) fn grant_cpu(self, child: &Child) -> io::Result<()> {
        let Some(limit) = self.cpu else { return Ok(()) };
        let used = linux::used_cpu(child);
        let allowed = (used + limit.get() + std::time::Duration::from_nanos(999_999_999)).as_secs();
        // A hard limit could not be raised for the next batch.
        linux::set(child, rustix::process::Resource::Cpu, allowed, None)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::time::Duration;

    use nix::time::{ClockId, clock_getcpuclockid};
    use rustix::io::Errno;
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    use tokio::process::Child;

    /// Sets a soft limit, and a hard one unless that is to stay; neither above what the worker has itself.
    pub(super) fn set(
        child: &Child,
        resource: Resource,
        soft: u64,
        hard: Option<u64>,
    ) -> io::Result<()> {
        let Some(pid) = pid(child) else { return Ok(()) };
        let own = getrlimit(resource).maximum;
        let within = |limit: u64| own.map_or(limit, |own| limit.min(own));
        let limit = Rlimit {
            current: Some(within(soft)),
            maximum: hard.map(within).or(own),
        };
        match prlimit(Some(pid), resource, limit) {
            // It has ended already.
            Ok(_) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// CPU time that a process has used; none if it has ended.
    pub(super) fn used_cpu(child: &Child) -> Duration {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(pid.unwrap_or_default()));
        clock
            .and_then(ClockId::now)
            .map(Duration::from)
            .unwrap_or_default()
    }

    fn pid(child: &Child) -> Option<Pid> {
        Pid::from_raw(i32::try_from(child.id()?).ok()?)
    }
}

/// Elsewhere, the configuration refuses limits.
#[cfg(not(target_os = "linux"))]
impl Bounds {
    pub(super) fn spawn(self, command: &mut Command) -> io::Result<Child> {
        command.spawn()
    }

    pub(super) fn grant_cpu(self, _: &Child) -> io::Result<()> {
        Ok(())
    }
}
