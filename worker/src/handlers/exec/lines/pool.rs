//! The processes of a pipeline: as many as have work, up to a limit, kept for the next batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shared::backoff::Backoff;
use shared::config::{PipelineConfig, Span};
use shared::name::PipelineName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::long_lived::LongLived;
use crate::handler::{BatchContext, HandlerError, Output};
use crate::handlers::exec::{Program, with_stderr};
use crate::handlers::stop::Stop;

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
    losses: Mutex<Losses>,
}

/// Processes lost since a batch was last answered.
#[derive(Debug, Default)]
struct Losses {
    in_a_row: u32,
    /// Why the last one did not start, if nobody waited for it any longer: the next batch hears of it.
    untold: Option<HandlerError>,
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
                losses: Mutex::default(),
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
        // Later, it would have too little time left, and pay for the wait with an attempt.
        let patience = ctx.deadline.saturating_duration_since(Instant::now()) / 2;
        let (process, room) = tokio::select! {
            biased;
            () = ctx.cancelled.cancelled() => {
                return Err(self.kept.program.stopped(Stop::CalledOff));
            }
            found = timeout(patience, self.process()) => {
                found.unwrap_or_else(|_| Err(self.no_process()))?
            }
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
                *self.kept.losses() = Losses::default();
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

    /// A process that has nothing to do, and its room.
    async fn process(&self) -> Result<(LongLived, OwnedSemaphorePermit), HandlerError> {
        let stops = || HandlerError::retry("the worker stops");
        let room = self.room.clone().acquire_owned().await;
        let room = room.map_err(|_| stops())?;
        if let Some(process) = self.kept.take() {
            return Ok((process, room));
        }
        if let Some(error) = self.kept.losses().untold.take() {
            return Err(error);
        }
        let (started, room) = self.start(room).await.map_err(|_| stops())?;
        Ok((started?, room))
    }

    /// Starts a process. It goes on starting when nobody waits for it any longer, and then waits for a batch.
    fn start(&self, room: OwnedSemaphorePermit) -> oneshot::Receiver<Started> {
        let (tell, told) = oneshot::channel::<Started>();
        let (kept, closing) = (self.kept.clone(), self.closing.clone());
        self.tasks.spawn(async move {
            let started = tokio::select! {
                started = kept.start() => started,
                () = closing.cancelled() => return,
            };
            if let Err((started, room)) = tell.send((started, room)) {
                match started {
                    Ok(process) => kept.put(process),
                    Err(error) => kept.losses().untold = Some(error),
                }
                drop(room);
            }
        });
        told
    }

    /// The batch was never begun, so it burns no attempt.
    fn no_process(&self) -> HandlerError {
        HandlerError::Throttled {
            reason: format!(
                "no process of {} was free or ready within half of the deadline: more `processes` or a longer \
                 `deadline` may help",
                self.kept.program.command
            ),
            after: NO_PROCESS,
        }
    }

    /// Processes lost since a batch was last answered.
    #[cfg(test)]
    pub(in crate::handlers::exec) fn lost(&self) -> u32 {
        self.kept.losses().in_a_row
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
        let lost = self.losses().in_a_row;
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
        let lost = {
            let mut losses = self.losses();
            losses.in_a_row = losses.in_a_row.saturating_add(1);
            losses.in_a_row
        };
        tracing::warn!(pipeline = %self.pipeline, lost, when, "lost a process");
        metrics::counter!("tidegate_exec_processes_lost_total", "pipeline" => self.pipeline.to_string())
            .increment(1);
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<LongLived>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn losses(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
