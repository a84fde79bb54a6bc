//! `mode = "batch"`: a batch is one run of the command.

use std::io;
use std::pin::pin;
use std::process::ExitStatus;

use futures::FutureExt;
use futures::future::FusedFuture;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::time::{sleep, timeout};

use super::process::{Pipes, Process};
use super::tail::Tail;
use super::verdict::{self, Verdict};
use super::{DRAIN, GRACE, Program, REAP, with_stderr};
use crate::handler::{BatchContext, HandlerError, Output, Rows};
use crate::handlers::rows::{Flood, RowReader};
use crate::handlers::stop::{Stop, stop_wanted};
use crate::handlers::wire::one_line;

/// How an attempt's process came to its end.
enum Ending {
    Exited(ExitStatus),
    Flooded(Flood),
    Stopped(Stop),
}

/// What happened first.
enum Event<T> {
    Exited(io::Result<ExitStatus>),
    Flooded(Flood),
    Stopped(T),
}

/// Starts the program once for each batch.
#[derive(Debug)]
pub(super) struct PerBatch {
    pub(super) program: Program,
}

impl PerBatch {
    pub(super) async fn handle(&self, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let program = &self.program;
        program.leave.ask(ctx).await?;
        let command = program.command.for_batch(&ctx.batch);
        let mut process =
            Process::spawn(command, program.bounds).map_err(|error| program.cannot_run(&error))?;
        let (mut rows, mut errors) = (RowReader::new(&*program.rows), Tail::default());
        let payload = one_line(ctx.batch.payload.get());
        let ending = conduct(&mut process, &payload, &mut rows, &mut errors, ctx)
            .await
            .map_err(|error| program.cannot_run(&error))?;
        let rows = self
            .judge(&ending, rows)
            .map_err(|error| with_stderr(error, &errors))?;
        Ok(Output {
            rows,
            ..Output::default()
        })
    }

    fn judge(&self, ending: &Ending, rows: RowReader) -> Result<Rows, HandlerError> {
        match ending {
            Ending::Exited(status) => match verdict::judge(*status) {
                Verdict::Completed => rows.into_rows(),
                failed => Err(failed.into_error()),
            },
            Ending::Flooded(flood) => Err((*flood).into()),
            Ending::Stopped(stop) => Err(self.program.stopped(*stop)),
        }
    }
}

/// Runs the process until it is over, one way or another. Nothing of its group is alive after that, nor
/// after this future was dropped.
async fn conduct(
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
        tokio::try_join!(feed(stdin, payload), rows.read(stdout), errors.read(stderr)).map(|_| ())
    };
    let mut pump = pin!(pump.fuse());

    let ending = match first(process, &mut pump, stop_wanted(ctx)).await {
        Event::Exited(status) => Ending::Exited(status?),
        Event::Flooded(flood) => Ending::Flooded(flood),
        Event::Stopped(stop) => {
            process.terminate();
            let _ = first(process, &mut pump, sleep(GRACE)).await;
            Ending::Stopped(stop)
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

/// Writes the payload and closes stdin. A command need not read it, so a broken pipe is no error.
async fn feed(mut stdin: ChildStdin, payload: &str) -> Result<(), Flood> {
    for part in [payload, "\n"] {
        if stdin.write_all(part.as_bytes()).await.is_err() {
            break;
        }
    }
    Ok(())
}
