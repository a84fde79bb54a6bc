//! `handler = "exec"`: a batch is the work of a command.
//!
//! With `mode = "batch"`, the default, it is one run of it:
//!
//! - **stdin** gets the payload as JSON on one line, then end of file. Not reading it is fine.
//! - **stdout** is the rows: NDJSON, one JSON document a line, blank lines ignored ([`super::rows`] has the limits).
//! - **The exit code** says what becomes of the batch ([`verdict`] has the table); rows count with 0 only.
//!
//! With `mode = "lines"` a process serves batch after batch: [`lines`] has the protocol.
//!
//! In both:
//!
//! - **stderr** is for people: its end goes into the batch's error.
//! - **The environment** is empty but for `PATH`, `HOME`, `LANG`, `TMPDIR`, what `environment` in the config
//!   names, and `TIDEGATE_PIPELINE`; where a process has one batch, `TIDEGATE_BATCH`, `TIDEGATE_RUN`,
//!   `TIDEGATE_KEY`, `TIDEGATE_ATTEMPT` too.
//! - **The process group** is the command's own. It gets SIGTERM at the deadline or when the attempt is called
//!   off, SIGKILL [`GRACE`] later; whatever is left of it when the command exits gets SIGKILL at once.
//! - **Memory and processor time** can be bounded ([`bounds`]).
//! - **Limits** of the pipeline's configuration are asked for one call before a command gets its batch; in `lines`
//!   mode, a batch that is answered with `throttled` slows an adaptive one down.
//!
//! What leaves the group (`setsid`) is out of reach; it cannot hold the batch up, though.

mod batch;
mod bounds;
mod command;
mod lines;
mod process;
mod tail;
mod verdict;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::value::RawValue;
use shared::config::{ConfigError, ExecMode, PipelineConfig, Span};
use shared::name::PipelineName;
use shared::outcome::printable_error;

use self::batch::PerBatch;
use self::bounds::Bounds;
use self::command::CommandTemplate;
use self::lines::Pool;
use self::tail::Tail;
use super::leave::Leave;
use super::stop::Stop;
use crate::collect::RowForm;
use crate::handler::{BatchContext, Handler, HandlerError, Output};

/// Between SIGTERM and SIGKILL: enough to remove a temporary file, and little to wait for.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long pipes may stay open after the command has exited and its group is killed. What it wrote is read
/// at once; only a process that left the group can still hold them.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed process may take to disappear.
const REAP: Duration = Duration::from_secs(1);

/// Has a command do the work.
#[derive(Debug)]
pub struct Exec {
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    Batch(PerBatch),
    Lines(Pool),
}

/// What is started, and what it may use.
#[derive(Debug, Clone)]
struct Program {
    command: CommandTemplate,
    bounds: Bounds,
    leave: Leave,
    deadline: Span,
    rows: Arc<dyn RowForm>,
}

impl Exec {
    /// Prepares the pipeline's command, which writes rows in this form, for a worker that runs `slots` batches at
    /// once. Fails when its program cannot be found, so that a worker which could only ruin batches does not start.
    pub fn new(
        pipeline: &PipelineName,
        config: &PipelineConfig,
        slots: u32,
        rows: Arc<dyn RowForm>,
    ) -> Result<Self, ConfigError> {
        let program = Program {
            command: CommandTemplate::new(pipeline, config)?,
            bounds: Bounds::new(config),
            leave: Leave::under(&config.limits),
            deadline: config.deadline,
            rows,
        };
        let mode = match config.mode {
            ExecMode::Batch => Mode::Batch(PerBatch { program }),
            ExecMode::Lines => {
                let processes = config.processes.unwrap_or(slots);
                Mode::Lines(Pool::new(pipeline, program, processes, config))
            }
        };
        Ok(Self { mode })
    }
}

#[async_trait]
impl Handler for Exec {
    type Input = Box<RawValue>;

    async fn handle(&self, _: Self::Input, ctx: &BatchContext) -> Result<Output, HandlerError> {
        match &self.mode {
            Mode::Batch(per_batch) => per_batch.handle(ctx).await,
            Mode::Lines(pool) => pool.handle(ctx).await,
        }
    }

    async fn close(&self) {
        match &self.mode {
            Mode::Batch(_) => {}
            Mode::Lines(pool) => pool.close().await,
        }
    }
}

impl Program {
    /// Another worker may have the program, or this one less to do, when it is tried again.
    fn cannot_run(&self, error: &io::Error) -> HandlerError {
        HandlerError::retry(format!("cannot run {}: {error}", self.command))
    }

    fn stopped(&self, stop: Stop) -> HandlerError {
        HandlerError::retry(match stop {
            Stop::DeadlineReached => {
                format!(
                    "the command was stopped at the deadline, after {}",
                    self.deadline
                )
            }
            Stop::CalledOff => "the command was stopped: the attempt was called off".to_owned(),
        })
    }
}

/// Adds what the command said itself.
fn with_stderr(error: HandlerError, errors: &Tail) -> HandlerError {
    let add = |error: String| {
        let said = errors.text();
        let text = if said.is_empty() {
            error
        } else {
            format!("{error}; stderr: {said}")
        };
        printable_error(&text)
    };
    match error {
        HandlerError::Retry { error, after } => HandlerError::Retry {
            error: add(error),
            after,
        },
        HandlerError::Fail { reason, error } => HandlerError::Fail {
            reason,
            error: add(error),
        },
        other @ (HandlerError::Throttled { .. } | HandlerError::CoordinatorAway) => other,
    }
}

#[cfg(test)]
mod tests;
