//! `handler = "exec"`: a batch is one run of a command.
//!
//! - **Limits** of the pipeline's configuration are asked for one call before the command starts.
//! - **stdin** gets the payload as JSON on one line, then end of file. Not reading it is fine.
//! - **stdout** is the rows: NDJSON, one JSON document a line, blank lines ignored ([`rows`] has the limits).
//! - **The exit code** says what becomes of the batch ([`verdict`] has the table); rows count with 0 only.
//! - **stderr** is for people: its end goes into the batch's error.
//! - **The environment** is empty but for `PATH`, `HOME`, `LANG`, `TMPDIR`, what `environment` in the config
//!   names, and `TIDEGATE_BATCH`, `TIDEGATE_RUN`, `TIDEGATE_PIPELINE`, `TIDEGATE_KEY`, `TIDEGATE_ATTEMPT`.
//! - **The process group** is the command's own. It gets SIGTERM at the deadline or when the attempt is called
//!   off, SIGKILL [`GRACE`] later; whatever is left of it when the command exits gets SIGKILL at once.
//!
//! What leaves the group (`setsid`) is out of reach; it cannot hold the batch up, though.

mod command;
mod process;
mod rows;
mod tail;
mod verdict;

use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::FusedFuture;
use serde_json::value::RawValue;
use shared::ask::Want;
use shared::config::{ConfigError, PipelineConfig, Span};
use shared::name::{LimitName, PipelineName};
use shared::outcome::printable_error;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::time::{sleep, sleep_until, timeout};

use self::command::CommandTemplate;
use self::process::{Pipes, Process};
use self::rows::{Flood, RowReader};
use self::tail::Tail;
use self::verdict::Verdict;
use crate::handler::{BatchContext, Handler, HandlerError, Output, Rows};

/// Between SIGTERM and SIGKILL: enough to remove a temporary file, and little to wait for.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long pipes may stay open after the command has exited and its group is killed. What it wrote is read
/// at once; only a process that left the group can still hold them.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed process may take to disappear.
const REAP: Duration = Duration::from_secs(1);

/// Runs a command for each batch.
#[derive(Debug)]
pub struct Exec {
    command: CommandTemplate,
    deadline: Span,
    /// What each start of the command falls under.
    limits: Vec<LimitName>,
}

/// How an attempt's process came to its end.
enum Ending {
    Exited(ExitStatus),
    Flooded(Flood),
    DeadlineReached,
    CalledOff,
}

/// What happened first.
enum Event<T> {
    Exited(io::Result<ExitStatus>),
    Flooded(Flood),
    Stopped(T),
}

impl Exec {
    /// Prepares the pipeline's command. Fails when its program cannot be found, so that a worker which could
    /// only ruin batches does not start.
    pub fn new(pipeline: &PipelineName, config: &PipelineConfig) -> Result<Self, ConfigError> {
        let command = CommandTemplate::new(pipeline, config)?;
        Ok(Self {
            command,
            deadline: config.deadline,
            limits: config.limits.clone(),
        })
    }

    /// Runs the process until it is over, one way or another. Nothing of its group is alive after that, nor
    /// after this future was dropped.
    async fn conduct(
        &self,
        process: &mut Process,
        payload: &str,
        rows: &mut RowReader,
        errors: &mut Tail,
        ctx: &BatchContext,
    ) -> io::Result<Ending> {
        let Pipes {
            stdin,
            stdout,
            stderr,
        } = process.take_pipes();
        let pump = async {
            tokio::try_join!(feed(stdin, payload), rows.read(stdout), errors.read(stderr))
                .map(|_| ())
        };
        let mut pump = pin!(pump.fuse());

        let ending = match first(process, &mut pump, stop_wanted(ctx)).await {
            Event::Exited(status) => Ending::Exited(status?),
            Event::Flooded(flood) => Ending::Flooded(flood),
            Event::Stopped(ending) => {
                process.terminate();
                let _ = first(process, &mut pump, sleep(GRACE)).await;
                ending
            }
        };
        process.kill();
        if let Ending::Exited(_) = ending {
            if !pump.is_terminated()
                && let Ok(Err(flood)) = timeout(DRAIN, pump).await
            {
                return Ok(Ending::Flooded(flood));
            }
        } else {
            let _ = timeout(REAP, process.wait()).await;
        }
        Ok(ending)
    }

    fn judge(&self, ending: &Ending, rows: RowReader) -> Result<Vec<Box<RawValue>>, HandlerError> {
        match ending {
            Ending::Exited(status) => match verdict::judge(*status) {
                Verdict::Completed => rows
                    .into_rows()
                    .map_err(|problem| HandlerError::fail("bad_output", problem)),
                Verdict::Retry(error) => Err(HandlerError::retry(error)),
                Verdict::Fail(reason, error) => Err(HandlerError::fail(reason, error)),
            },
            Ending::Flooded(flood) => {
                Err(HandlerError::fail("output_too_large", flood.to_string()))
            }
            Ending::DeadlineReached => {
                let error = format!(
                    "the command was stopped at the deadline, after {}",
                    self.deadline
                );
                Err(HandlerError::retry(error))
            }
            Ending::CalledOff => Err(HandlerError::retry(
                "the command was stopped: the attempt was called off",
            )),
        }
    }
}

#[async_trait]
impl Handler for Exec {
    type Input = Box<RawValue>;

    async fn handle(&self, input: Self::Input, ctx: &BatchContext) -> Result<Output, HandlerError> {
        if !self.limits.is_empty() {
            let want = |limit: &LimitName| Want {
                limit: limit.clone(),
                key: ctx.batch.key.clone(),
                n: 1,
            };
            ctx.permit_all(self.limits.iter().map(want).collect())
                .await?;
        }
        // Another worker may have the program, or this one less to do, when it is tried again.
        let cannot_run =
            |error: io::Error| HandlerError::retry(format!("cannot run {}: {error}", self.command));
        let mut process = Process::spawn(self.command.for_batch(&ctx.batch)).map_err(cannot_run)?;
        let (mut rows, mut errors) = (RowReader::default(), Tail::default());
        let payload = one_line(&input);
        let ending = self
            .conduct(&mut process, &payload, &mut rows, &mut errors, ctx)
            .await
            .map_err(cannot_run)?;
        let rows = self
            .judge(&ending, rows)
            .map_err(|error| with_stderr(error, &errors))?;
        Ok(Output {
            rows: Rows::Json(rows),
            ..Output::default()
        })
    }
}

/// Waits until the process exits, floods, or `stop` happens; what it writes is read meanwhile.
async fn first<T>(
    process: &mut Process,
    pump: &mut (impl FusedFuture<Output = Result<(), Flood>> + Unpin),
    stop: impl Future<Output = T>,
) -> Event<T> {
    tokio::select! {
        biased;
        // When everything was read, this pattern does not match, and the others decide.
        Err(flood) = &mut *pump, if !pump.is_terminated() => Event::Flooded(flood),
        status = process.wait() => Event::Exited(status),
        stopped = stop => Event::Stopped(stopped),
    }
}

async fn stop_wanted(ctx: &BatchContext) -> Ending {
    tokio::select! {
        () = ctx.cancelled.cancelled() => {
            let late = std::time::Instant::now() >= ctx.deadline;
            if late { Ending::DeadlineReached } else { Ending::CalledOff }
        }
        () = sleep_until(ctx.deadline.into()) => Ending::DeadlineReached,
    }
}

/// Writes the payload and closes stdin. A command need not read it, so a broken pipe is no error.
async fn feed(mut stdin: ChildStdin, payload: &str) -> Result<(), Flood> {
    for part in [payload, "\n"] {
        if stdin.write_all(part.as_bytes()).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// In valid JSON, a bare line break is only ever white space.
fn one_line(payload: &RawValue) -> String {
    payload.get().replace(['\n', '\r'], " ")
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
