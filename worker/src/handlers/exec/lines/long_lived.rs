//! A process that serves batch after batch: how it starts, answers and ends.

use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use shared::name::PipelineName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::answer::{Answer, Word};
use crate::handler::{BatchContext, HandlerError, Output};
use crate::handlers::exec::process::{Pipes, Process};
use crate::handlers::exec::tail::Tail;
use crate::handlers::exec::verdict::{Verdict, judge};
use crate::handlers::exec::{DRAIN, GRACE, Program, with_stderr};
use crate::handlers::rows::{Flood, Lines, READ_BYTES};
use crate::handlers::stop::{Stop, stop_wanted};
use crate::handlers::wire::Request;

/// The version of the protocol that this worker speaks.
const VERSION: u32 = 1;
/// How long a process may take to end at end of file: enough to write down what it learnt.
const FAREWELL: Duration = Duration::from_secs(5);
/// How much of a line that was not expected is shown.
const SHOWN_BYTES: usize = 100;

/// A process that has said that it is ready.
#[derive(Debug)]
pub(super) struct LongLived {
    program: Arc<Program>,
    process: Process,
    stdin: ChildStdin,
    stdout: ChildStdout,
    piece: Vec<u8>,
    stderr: Listening,
    /// Batches that it was given.
    served: u32,
}

/// The end of stderr, which is read all the time: a full pipe would stop the process.
#[derive(Debug)]
struct Listening {
    tail: Arc<Mutex<Tail>>,
    task: AbortOnDropHandle<()>,
}

/// Why no batch can be given to the process.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("cannot run it: {0}")]
    Spawn(#[from] io::Error),
    #[error("it is not ready after {0:?}")]
    Late(Duration),
    #[error("it ended before it was ready: {0}")]
    Ended(String),
    #[error("it closed its stdout before it was ready")]
    Closed,
    #[error("it said {0:?} instead of {{\"ready\": {VERSION}}}")]
    Odd(String),
    #[error("it speaks version {0} of the protocol, this worker speaks {VERSION}")]
    Version(u32),
}

/// How a batch came to its end.
enum Ending {
    Answered,
    Flooded(Flood),
    Exited(ExitStatus),
    Closed,
    Stopped(Stop),
}

/// Why nothing more is read.
enum Silence {
    Flooded(Flood),
    Closed,
}

impl LongLived {
    /// Starts the process and waits until it is ready. The error comes with its last words.
    pub(super) async fn start(
        program: Arc<Program>,
        pipeline: &PipelineName,
        within: Duration,
    ) -> Result<Self, (StartError, Tail)> {
        let command = program.command.for_pipeline(pipeline);
        let mut process = Process::spawn(command, program.bounds)
            .map_err(|error| (error.into(), Tail::default()))?;
        let Pipes {
            stdin,
            stdout,
            stderr,
        } = process.take_pipes();
        let mut starting = Self {
            program,
            process,
            stdin,
            stdout,
            piece: vec![0; READ_BYTES],
            stderr: Listening::to(stderr),
            served: 0,
        };
        match starting.until_ready(within).await {
            Ok(()) => Ok(starting),
            Err(error) => {
                starting.process.stop().await;
                Err((error, starting.stderr.last_words().await))
            }
        }
    }

    async fn until_ready(&mut self, within: Duration) -> Result<(), StartError> {
        let Self {
            process,
            stdout,
            piece,
            ..
        } = self;
        tokio::select! {
            biased;
            ready = first_word(stdout, piece) => match ready {
                Err(StartError::Closed) => match timeout(GRACE, process.wait()).await {
                    Ok(status) => Err(ended(status?)),
                    Err(_) => Err(StartError::Closed),
                }
                other => other,
            },
            status = process.wait() => Err(ended(status?)),
            () = sleep(within) => Err(StartError::Late(within)),
        }
    }

    /// Whether it still waits for a batch: it lives, and has said nothing unasked.
    pub(super) fn is_waiting(&mut self) -> bool {
        let unasked = self.stdout.read(&mut self.piece).now_or_never();
        self.process.ended().is_none() && unasked.is_none()
    }

    /// Has it do a batch. The process comes back if it can do another one.
    pub(super) async fn work(
        mut self,
        ctx: &BatchContext,
    ) -> (Result<Output, HandlerError>, Option<Self>) {
        self.stderr.forget();
        self.served = self.served.saturating_add(1);
        let mut answer = Answer::about(ctx.batch.id, &*self.program.rows);
        let ending = self.converse(&mut answer, ctx).await;
        let goes_on = matches!(ending, Ok(Ending::Answered)) && answer.is_clean();
        let result = match ending {
            Ok(Ending::Answered) => answer.into_result(),
            Ok(Ending::Flooded(flood)) => {
                self.process.kill();
                Err(flood.into())
            }
            Ok(Ending::Exited(status)) => Err(judge(status).into_error()),
            Ok(Ending::Closed) => Err(HandlerError::retry(
                "the command closed its stdout before it had ended the batch",
            )),
            Ok(Ending::Stopped(stop)) => Err(self.program.stopped(stop)),
            Err(error) => Err(self.program.cannot_run(&error)),
        };
        if goes_on {
            let result = result.map_err(|error| with_stderr(error, &self.stderr.so_far()));
            return (result, Some(self));
        }
        self.process.stop().await;
        let last_words = self.stderr.last_words().await;
        (
            result.map_err(|error| with_stderr(error, &last_words)),
            None,
        )
    }

    /// How many batches it was given.
    pub(super) fn served(&self) -> u32 {
        self.served
    }

    async fn converse(&mut self, answer: &mut Answer, ctx: &BatchContext) -> io::Result<Ending> {
        self.process.grant_cpu()?;
        let line = Request::new(ctx).into_line();
        let Self {
            process,
            stdin,
            stdout,
            piece,
            ..
        } = self;
        let told = async {
            // If it does not listen, it will not answer either.
            let _ = stdin.write_all(line.as_bytes()).await;
            Ok(())
        };
        let exchange =
            async { tokio::try_join!(told, hear(stdout, piece, answer, ctx)).map(|_| ()) };
        let mut exchange = pin!(exchange);
        let ending = tokio::select! {
            biased;
            exchanged = &mut exchange => Ending::from(exchanged),
            status = process.wait() => {
                let status = status?;
                process.kill();
                // What it wrote before is read at once; only who left the group can still hold the pipe.
                match timeout(DRAIN, exchange).await.map(Ending::from) {
                    Err(_) | Ok(Ending::Closed) => Ending::Exited(status),
                    Ok(ending) => ending,
                }
            }
            stop = stop_wanted(ctx) => Ending::Stopped(stop),
        };
        if let Ending::Closed = ending
            && let Ok(status) = timeout(GRACE, process.wait()).await
        {
            return Ok(Ending::Exited(status?));
        }
        Ok(ending)
    }

    /// Ends it: at end of file it should go by itself.
    pub(super) async fn end(self) {
        let Self {
            mut process, stdin, ..
        } = self;
        drop(stdin);
        let _ = timeout(FAREWELL, process.wait()).await;
        process.stop().await;
    }
}

impl From<Result<(), Silence>> for Ending {
    fn from(exchanged: Result<(), Silence>) -> Self {
        match exchanged {
            Ok(()) => Self::Answered,
            Err(Silence::Flooded(flood)) => Self::Flooded(flood),
            Err(Silence::Closed) => Self::Closed,
        }
    }
}

impl From<Flood> for Silence {
    fn from(flood: Flood) -> Self {
        Self::Flooded(flood)
    }
}

impl Listening {
    fn to(mut stderr: ChildStderr) -> Self {
        let tail = Arc::new(Mutex::new(Tail::default()));
        let heard = tail.clone();
        let task = tokio::spawn(async move {
            let mut piece = vec![0; READ_BYTES];
            while let Ok(length @ 1..) = stderr.read(&mut piece).await {
                lock(&heard).push(&piece[..length]);
            }
        });
        Self {
            tail,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// What was said about earlier batches is not this one's.
    fn forget(&self) {
        lock(&self.tail).clear();
    }

    fn so_far(&self) -> Tail {
        lock(&self.tail).clone()
    }

    /// All of it, once the process has ended.
    async fn last_words(self) -> Tail {
        let _ = timeout(DRAIN, self.task).await;
        lock(&self.tail).clone()
    }
}

fn lock(tail: &Mutex<Tail>) -> std::sync::MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads until the answer is complete.
async fn hear(
    stdout: &mut ChildStdout,
    piece: &mut [u8],
    answer: &mut Answer,
    ctx: &BatchContext,
) -> Result<(), Silence> {
    while let Ok(length @ 1..) = stdout.read(piece).await {
        let is_over = answer.push(&piece[..length])?;
        if let Some(progress) = answer.take_progress() {
            ctx.reporter.report(progress);
        }
        if let Some(cursor) = answer.take_cursor()
            && let Err(error) = ctx.save_cursor(&cursor).await
        {
            tracing::warn!(batch.id = %ctx.batch.id, %error, "the batch would start from an earlier cursor");
        }
        if is_over {
            return Ok(());
        }
    }
    Err(Silence::Closed)
}

/// Reads the line that says that it is ready, and nothing else.
async fn first_word(stdout: &mut ChildStdout, piece: &mut [u8]) -> Result<(), StartError> {
    let (mut lines, mut said) = (Lines::default(), Vec::new());
    while let Ok(length @ 1..) = stdout.read(piece).await {
        let kept = lines.push(&piece[..length], |_, line| {
            said.push(line.to_vec());
            Ok(())
        });
        match said.as_slice() {
            [] if kept.is_err() => return Err(odd(&piece[..length])),
            [] => {}
            [first] if !lines.is_within_line() => return judge_first(first),
            [first, ..] => return Err(odd(said.get(1).unwrap_or(first))),
        }
    }
    Err(StartError::Closed)
}

fn judge_first(line: &[u8]) -> Result<(), StartError> {
    match Word::read(line) {
        Ok(Word::Ready(VERSION)) => Ok(()),
        Ok(Word::Ready(other)) => Err(StartError::Version(other)),
        _ => Err(odd(line)),
    }
}

fn odd(line: &[u8]) -> StartError {
    let shown = &line[..line.len().min(SHOWN_BYTES)];
    StartError::Odd(String::from_utf8_lossy(shown).into_owned())
}

fn ended(status: ExitStatus) -> StartError {
    StartError::Ended(match judge(status) {
        Verdict::Completed => "exit code 0".to_owned(),
        Verdict::Retry(error) | Verdict::Fail(_, error) => error,
    })
}
