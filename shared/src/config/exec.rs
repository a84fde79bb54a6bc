//! What `handler = "exec"` is told.

use serde::Deserialize;

use super::{ConfigError, HandlerKind, PipelineConfig, Span};
use crate::name::PipelineName;

/// How many batches a process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecMode {
    /// One: payload on stdin, rows on stdout, the exit code says how it went.
    #[default]
    Batch,
    /// One after the other, a line of JSON each, so that what is slow to load is loaded once.
    Lines,
}

impl PipelineConfig {
    /// More processes on one machine than any machine has cores.
    const MAX_PROCESSES: u32 = 1_024;
    /// The kernel counts CPU time against its limit in whole seconds.
    const MIN_CPU_LIMIT: Span = Span::seconds(1);

    pub(super) fn check_exec(&self, name: &PipelineName) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::wrong(
                format!("pipelines.{name}.{key}"),
                problem,
            ))
        };
        let is_exec = self.handler() == HandlerKind::Exec;
        if is_exec && self.command.is_empty() {
            return wrong(
                "command",
                "is missing: name the program, such as command = [\"python3\", \"work.py\"]".into(),
            );
        }
        if !is_exec && !self.command.is_empty() {
            return wrong("command", "belongs to handler = \"exec\" alone".into());
        }
        for (key, number) in [
            ("processes", self.processes),
            ("batches_per_process", self.batches_per_process),
        ] {
            if number.is_some() && self.mode != ExecMode::Lines {
                return wrong(key, "belongs to mode = \"lines\" alone".into());
            }
        }
        if self.batches_per_process == Some(0) {
            return wrong("batches_per_process", "must be at least 1".into());
        }
        let usable = 1..=Self::MAX_PROCESSES;
        if let Some(processes) = self
            .processes
            .filter(|processes| !usable.contains(processes))
        {
            let problem = format!("must be 1 to {}, is {processes}", Self::MAX_PROCESSES);
            return wrong("processes", problem);
        }
        if !cfg!(target_os = "linux") && (self.memory_limit.is_some() || self.cpu_limit.is_some()) {
            return wrong("memory_limit", "and cpu_limit work on Linux alone".into());
        }
        if let Some(limit) = self.cpu_limit
            && limit < Self::MIN_CPU_LIMIT
        {
            return wrong(
                "cpu_limit",
                format!("must be at least {}, is {limit}", Self::MIN_CPU_LIMIT),
            );
        }
        Ok(())
    }
}
