//! The threads that handlers run on, apart from everything that talks to the broker: a handler that blocks its
//! thread delays other handlers and nothing else.
//!
//! A handler that ends neither by itself nor when it is told to is *abandoned*: nobody waits for it any more. One
//! that blocks its thread cannot be ended from outside, so the threads are replaced: what starts from then on
//! runs on fresh ones, and the old ones go when their last handler does. More than a few abandoned handlers end
//! the worker ([`HandlerThreads::watch`]), because only a new process gets rid of them.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a handler that waits for something takes to be dropped, if it has a thread for that.
const DROPPED_WITHIN: Duration = Duration::from_secs(1);

/// Where handlers run; cheap to clone.
#[derive(Debug, Clone)]
pub struct HandlerThreads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many threads there are; `None` when handlers run where they are started.
    count: Option<usize>,
    current: Mutex<Arc<Generation>>,
    abandoned: Abandoned,
}

/// How many abandoned handlers still run.
#[derive(Debug, Clone, Default)]
struct Abandoned(watch::Sender<u32>);

/// One set of threads.
#[derive(Debug)]
struct Generation {
    handle: Handle,
    runtime: Option<Runtime>,
}

/// A handler that runs.
#[derive(Debug)]
pub struct Handling<T> {
    task: JoinHandle<T>,
    stage: Arc<AtomicU8>,
    threads: HandlerThreads,
    /// Kept for as long as the handler may run.
    generation: Arc<Generation>,
}

/// What became of a handler that was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It is gone, or will be as soon as it waits for something.
    Gone,
    /// It never had a thread to start on.
    NotStarted,
    /// It blocks its thread.
    Abandoned,
}

/// More handlers than allowed were abandoned and still run.
#[derive(Debug, thiserror::Error)]
#[error(
    "{abandoned} abandoned handlers still block their threads, more than worker.max_abandoned = {allowed}: \
     only a new process gets rid of them"
)]
pub struct TooManyAbandoned {
    abandoned: u32,
    allowed: u32,
}

impl HandlerThreads {
    /// So many threads.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let generation = Generation::start(count)?;
        Ok(Self::new(Some(count), generation))
    }

    /// No threads of their own: handlers run in the runtime that this is called in.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn here() -> Self {
        let generation = Generation {
            handle: Handle::current(),
            runtime: None,
        };
        Self::new(None, generation)
    }

    fn new(count: Option<usize>, generation: Generation) -> Self {
        Self(Arc::new(Shared {
            count,
            current: Mutex::new(Arc::new(generation)),
            abandoned: Abandoned::default(),
        }))
    }

    /// Runs a handler.
    pub fn run<F>(&self, handler: F) -> Handling<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let stage = Arc::new(AtomicU8::new(stage::NEW));
        let generation = self.current().clone();
        let watched = Watched {
            handler: Box::pin(handler),
            stage: stage.clone(),
            abandoned: self.0.abandoned.clone(),
        };
        Handling {
            task: generation.handle.spawn(watched),
            stage,
            threads: self.clone(),
            generation,
        }
    }

    /// Ends with an error when too many handlers were abandoned, else when the worker drains.
    pub async fn watch(
        self,
        allowed: u32,
        draining: CancellationToken,
    ) -> Result<(), TooManyAbandoned> {
        let mut abandoned = self.0.abandoned.0.subscribe();
        tokio::select! {
            Ok(abandoned) = abandoned.wait_for(|count| *count > allowed) => {
                Err(TooManyAbandoned { abandoned: *abandoned, allowed })
            }
            () = draining.cancelled() => Ok(()),
        }
    }

    /// How many abandoned handlers still run.
    #[must_use]
    pub fn abandoned(&self) -> u32 {
        *self.0.abandoned.0.borrow()
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Arc<Generation>> {
        self.0
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Fresh threads for whatever starts from now on, unless somebody else has seen to that.
    fn replace(&self, blocked: &Arc<Generation>) {
        let Some(count) = self.0.count else { return };
        let mut current = self.current();
        if !Arc::ptr_eq(&current, blocked) {
            return;
        }
        match Generation::start(count) {
            Ok(fresh) => *current = Arc::new(fresh),
            Err(error) => tracing::error!(%error, "cannot replace blocked handler threads"),
        }
    }
}

impl Abandoned {
    fn change(&self, change: impl FnOnce(&mut u32)) {
        self.0.send_modify(change);
        metrics::gauge!("tidegate_abandoned_handlers").set(*self.0.borrow());
    }
}

impl Generation {
    fn start(count: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("handler")
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whatever blocks a thread would block this one too.
            runtime.shutdown_background();
        }
    }
}

impl<T> Handling<T> {
    /// Waits for its end: what it returned, or its panic.
    pub async fn ended(&mut self) -> Result<T, JoinError> {
        (&mut self.task).await
    }

    /// Ends it at its next await, if it comes to one.
    pub async fn drop_it(mut self) -> Dropped {
        self.task.abort();
        if timeout(DROPPED_WITHIN, &mut self.task).await.is_ok() {
            return Dropped::Gone;
        }
        // Counted first: it may end at any moment, and then counts itself out.
        self.threads.0.abandoned.change(|count| *count += 1);
        match self.stage.compare_exchange(
            stage::POLLED,
            stage::ABANDONED,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => {
                metrics::counter!("tidegate_abandoned_total").increment(1);
                self.threads.replace(&self.generation);
                Dropped::Abandoned
            }
            Err(stage) => {
                self.threads.0.abandoned.change(|count| *count -= 1);
                if stage == stage::NEW {
                    Dropped::NotStarted
                } else {
                    Dropped::Gone
                }
            }
        }
    }
}

impl<T> Drop for Handling<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a handler stands.
mod stage {
    /// It never had a thread.
    pub(super) const NEW: u8 = 0;
    /// It has a thread.
    pub(super) const POLLED: u8 = 1;
    /// It waits for something.
    pub(super) const WAITING: u8 = 2;
    /// It has a thread that nobody expects back.
    pub(super) const ABANDONED: u8 = 3;
}

/// A handler that can be seen to block its thread.
struct Watched<F> {
    handler: Pin<Box<F>>,
    stage: Arc<AtomicU8>,
    abandoned: Abandoned,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.stage.store(stage::POLLED, Ordering::Release);
        let polled = self.handler.as_mut().poll(context);
        let _ = self.stage.compare_exchange(
            stage::POLLED,
            stage::WAITING,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        polled
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        if self.stage.load(Ordering::Acquire) == stage::ABANDONED {
            tracing::info!("an abandoned handler has ended");
            self.abandoned.change(|count| *count -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A handler that blocks its thread until it is let go.
    fn block(threads: &HandlerThreads) -> (Handling<()>, mpsc::Sender<()>) {
        let (let_go, wait) = mpsc::channel();
        let (started, starts) = mpsc::channel();
        let handling = threads.run(async move {
            started.send(()).unwrap();
            let _ = wait.recv();
        });
        starts.recv().unwrap();
        (handling, let_go)
    }

    #[tokio::test]
    async fn an_abandoned_handler_keeps_nobody_waiting() {
        let threads = HandlerThreads::start(1).unwrap();
        let (blocking, let_go) = block(&threads);
        let behind = threads.run(async { 1 });
        assert_eq!(blocking.drop_it().await, Dropped::Abandoned);
        assert_eq!(behind.drop_it().await, Dropped::NotStarted);
        assert_eq!(threads.run(async { 7 }).ended().await.unwrap(), 7);

        let watched = threads.clone().watch(0, CancellationToken::new()).await;
        assert!(watched.unwrap_err().to_string().contains("max_abandoned"));
        let_go.send(()).unwrap();
        let mut abandoned = threads.0.abandoned.0.subscribe();
        abandoned.wait_for(|count| *count == 0).await.unwrap();
    }

    #[tokio::test]
    async fn a_handler_that_waits_is_dropped() {
        let threads = HandlerThreads::start(1).unwrap();
        let (holds, dropped) = tokio::sync::oneshot::channel::<()>();
        let waiting = threads.run(async move {
            let _holds = holds;
            std::future::pending::<()>().await;
        });
        assert_eq!(waiting.drop_it().await, Dropped::Gone);
        assert!(dropped.await.is_err());
        assert_eq!(*threads.0.abandoned.0.borrow(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_the_handlers_own() {
        let threads = HandlerThreads::start(1).unwrap();
        let panicked = threads.run(async { panic!("at the disco") }).ended().await;
        assert!(panicked.unwrap_err().is_panic());
        assert_eq!(threads.run(async { 7 }).ended().await.unwrap(), 7);
    }
}
