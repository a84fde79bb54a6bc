//! The processes of a pipeline: as many as have work, up to a limit, kept for the next batches.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::backoff::Backoff;
use shared::config::{PipelineConfig, Span};
use shared::name::PipelineName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::long_lived::LongLived;
use crate::handler::{BatchContext, HandlerError, Output};
use crate::handlers::exec::{Program, with_stderr};
use crate::handlers::stop::{Stop, stop_wanted};

/// Pauses before a process is started after so many were lost in a row: at most 0.2, 0.4, 0.8, … 30 s.
const RESTART: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
/// When a batch comes back that found no process in time.
const NO_PROCESS: Duration = Duration::from_secs(1);

/// The processes of a pipeline.
#[derive(Debug)]
pub(in crate::handlers::exec) struct Pool {
    kept: Arc<Kept>,
    /// One permit for each process that may exist.
    room: Arc<Semaphore>,
    /// What starts and what ends.
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What outlives a batch.
#[derive(Debug)]
struct Kept {
    pipeline: PipelineName,
    program: Arc<Program>,
    start_timeout: Span,
    batches_per_process: Option<u32>,
    /// The one that was used last is used next, so that those that are not needed stay out of memory.
    waiting: Mutex<Vec<LongLived>>,
    /// Processes lost since a batch was last answered.
    lost: AtomicU32,
}

/// A process, and the room that it takes.
type Started = (Result<LongLived, HandlerError>, OwnedSemaphorePermit);

impl Pool {
    pub(in crate::handlers::exec) fn new(
        pipeline: &PipelineName,
        program: Program,
        processes: u32,
        config: &PipelineConfig,
    ) -> Self {
        Self {
            kept: Arc::new(Kept {
                pipeline: pipeline.clone(),
                program: Arc::new(program),
                start_timeout: config.start_timeout,
                batches_per_process: config.batches_per_process,
                waiting: Mutex::default(),
                lost: AtomicU32::new(0),
            }),
            room: Arc::new(Semaphore::new(processes as usize)),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Has a process do the batch: one that waits, or a new one.
    pub(in crate::handlers::exec) async fn handle(
        &self,
        ctx: &BatchContext,
    ) -> Result<Output, HandlerError> {
        let room = tokio::select! {
            room = self.room.clone().acquire_owned() => {
                room.map_err(|_| HandlerError::retry("the worker stops"))?
            }
            stop = stop_wanted(ctx) => return Err(self.without_process(stop, "was free")),
        };
        let (process, room) = match self.kept.take() {
            Some(process) => (process, room),
            None => self.start(room, ctx).await?,
        };
        let leave = &self.kept.program.leave;
        let permit = match leave.ask(ctx).await {
            Ok(permit) => permit,
            Err(none) => {
                self.kept.put(process);
                return Err(none);
            }
        };
        let (result, process) = process.work(ctx).await;
        leave.tell(ctx, permit, &result);
        match process {
            None => self.kept.note_loss("in the middle of a batch"),
            Some(process) => {
                self.kept.lost.store(0, Ordering::Relaxed);
                if self.kept.is_worn(&process) {
                    // Its room is free when it has ended.
                    self.tasks.spawn(async move {
                        process.end().await;
                        drop(room);
                    });
                } else {
                    self.kept.put(process);
                }
            }
        }
        result
    }

    /// Starts a process. It goes on starting when the batch is not waited for any longer, and then waits for
    /// the next one.
    async fn start(
        &self,
        room: OwnedSemaphorePermit,
        ctx: &BatchContext,
    ) -> Result<(LongLived, OwnedSemaphorePermit), HandlerError> {
        let (tell, told) = oneshot::channel::<Started>();
        let (kept, closing) = (self.kept.clone(), self.closing.clone());
        self.tasks.spawn(async move {
            let started = tokio::select! {
                started = kept.start() => started,
                () = closing.cancelled() => return,
            };
            if let Err((Ok(process), room)) = tell.send((started, room)) {
                kept.put(process);
                drop(room);
            }
        });
        tokio::select! {
            started = told => match started {
                Ok((started, room)) => Ok((started?, room)),
                Err(_) => Err(HandlerError::retry("the worker stops")),
            },
            stop = stop_wanted(ctx) => Err(self.without_process(stop, "was ready")),
        }
    }

    /// The batch was never begun, so it burns no attempt.
    fn without_process(&self, stop: Stop, was: &str) -> HandlerError {
        match stop {
            Stop::DeadlineReached => HandlerError::Throttled {
                reason: format!("no process of {} {was} in time", self.kept.program.command),
                after: NO_PROCESS,
            },
            Stop::CalledOff => self.kept.program.stopped(stop),
        }
    }

    /// Processes lost since a batch was last answered.
    #[cfg(test)]
    pub(in crate::handlers::exec) fn lost(&self) -> u32 {
        self.kept.lost.load(Ordering::Relaxed)
    }

    /// Ends all processes, each as it likes if it is quick.
    pub(in crate::handlers::exec) async fn close(&self) {
        self.room.close();
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let waiting = std::mem::take(&mut *self.kept.waiting());
        futures::future::join_all(waiting.into_iter().map(LongLived::end)).await;
    }
}

impl Kept {
    async fn start(&self) -> Result<LongLived, HandlerError> {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            sleep(RESTART.draw(lost)).await;
        }
        let within = self.start_timeout.get();
        let started = LongLived::start(self.program.clone(), &self.pipeline, within).await;
        started
            .inspect(|_| {
                tracing::info!(pipeline = %self.pipeline, "started a process");
                metrics::counter!("tidegate_exec_processes_started_total", "pipeline" => self.pipeline.to_string())
                    .increment(1);
            })
            .map_err(|(error, last_words)| {
                self.note_loss("before it was ready");
                let command = &self.program.command;
                let error = HandlerError::retry(format!("{command} does not start: {error}"));
                with_stderr(error, &last_words)
            })
    }

    fn is_worn(&self, process: &LongLived) -> bool {
        let served = process.served();
        self.batches_per_process.is_some_and(|most| served >= most)
    }

    /// A process that waits for a batch.
    fn take(&self) -> Option<LongLived> {
        loop {
            let mut process = self.waiting().pop()?;
            if process.is_waiting() {
                return Some(process);
            }
            self.note_loss("while it waited for a batch");
        }
    }

    fn put(&self, process: LongLived) {
        self.waiting().push(process);
    }

    fn note_loss(&self, when: &'static str) {
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::warn!(pipeline = %self.pipeline, lost, when, "lost a process");
        metrics::counter!("tidegate_exec_processes_lost_total", "pipeline" => self.pipeline.to_string())
            .increment(1);
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<LongLived>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
