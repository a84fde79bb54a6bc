//! The way into a sink. It bounds what is under way to it, and while the sink is away it lets one call at a time find
//! out whether it is back, however many batches wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shared::backoff::Backoff;
use shared::id::BatchId;
use shared::outcome::Completed;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Committed, Marker, Sink, SinkError};
use crate::collect::RowForm;
use crate::handler::Rows;

/// How long a finished batch waits for a sink that is away before it is given back. Long enough for a
/// database to restart, short enough that the broker's consumer timeout is far.
const PATIENCE: Duration = Duration::from_secs(30);
/// Shortest pause before a sink that is away is tried again: less than once a second, whatever the chance.
const PAUSE: Duration = Duration::from_secs(1);
/// How much longer the pause may be: slots work again within five seconds after the sink is back.
const MORE_PAUSE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(3));
/// What room is counted in.
const KIB: u64 = 1024;

/// The way into one sink.
pub struct Entrance {
    sink: Arc<dyn Sink>,
    room: Semaphore,
    /// All the room there is, in KiB.
    all: u32,
    is_away: AtomicBool,
    /// Failures in a row; whoever holds it tries next.
    turn: Mutex<u32>,
}

impl Entrance {
    /// `bytes`: most bytes of rows under way.
    #[must_use]
    pub fn new(sink: Arc<dyn Sink>, bytes: u64) -> Self {
        let all = in_kib(bytes);
        Self {
            sink,
            room: Semaphore::new(all as usize),
            all,
            is_away: AtomicBool::new(false),
            turn: Mutex::new(0),
        }
    }

    /// Waits until there is room for these rows, and keeps it for as long as the answer lives. Rows that are larger
    /// than all the room there is get all of it.
    ///
    /// # Panics
    /// Never: the semaphore is not closed.
    pub async fn room(&self, rows: &Rows) -> SemaphorePermit<'_> {
        let room = self.room.acquire_many(in_kib(rows.bytes()).min(self.all));
        room.await.expect("room is never closed")
    }

    /// [`Sink::form`].
    #[must_use]
    pub fn form(&self) -> Arc<dyn RowForm> {
        self.sink.form()
    }

    /// [`Sink::find`], patiently.
    pub async fn find(&self, batch: BatchId) -> Result<Option<Completed>, SinkError> {
        self.patiently(|| self.sink.find(batch)).await
    }

    /// [`Sink::commit`], patiently.
    pub async fn commit(&self, marker: Marker, rows: Arc<Rows>) -> Result<Committed, SinkError> {
        self.patiently(|| self.sink.commit(marker.clone(), rows.clone()))
            .await
    }

    /// Returns once the sink answers a question.
    pub async fn until_it_answers(&self) {
        for failures in 1.. {
            match self.sink.find(BatchId::generate()).await {
                Err(error @ SinkError::Unavailable(_)) => {
                    note_failure(&error, failures);
                    pause(failures).await;
                }
                _ => return,
            }
        }
    }

    /// Tries again while the sink is away, as long as patience lasts.
    async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, SinkError>
    where
        F: Future<Output = Result<T, SinkError>>,
    {
        let give_up = Instant::now() + PATIENCE;
        let mut last_error = None;
        loop {
            if !self.is_away.load(Ordering::Acquire) {
                match call().await {
                    Err(error) if is_away(&error) => {
                        self.is_away.store(true, Ordering::Release);
                        last_error = Some(error);
                    }
                    other => return other,
                }
            }
            let Ok(mut failures) = timeout_at(give_up, self.turn.lock()).await else {
                return Err(last_error.unwrap_or_else(still_away));
            };
            // Whoever had the turn before may have found it back.
            if !self.is_away.load(Ordering::Acquire) {
                continue;
            }
            *failures += 1;
            note_failure(last_error.as_ref().unwrap_or(&still_away()), *failures);
            pause(*failures).await;
            match call().await {
                Err(error) if is_away(&error) && Instant::now() < give_up => {
                    last_error = Some(error);
                }
                Err(error) if is_away(&error) => return Err(error),
                other => {
                    *failures = 0;
                    self.is_away.store(false, Ordering::Release);
                    return other;
                }
            }
        }
    }
}

fn is_away(error: &SinkError) -> bool {
    matches!(error, SinkError::Unavailable(_)) && !error.is_about_the_rows()
}

async fn pause(failures: u32) {
    sleep(PAUSE + MORE_PAUSE.draw(failures)).await;
}

fn note_failure(error: &SinkError, failures: u32) {
    tracing::warn!(%error, failures, "the sink does not answer, trying again");
    metrics::counter!("tidegate_sink_failures_total").increment(1);
}

/// What is said to those whose turn to try never came.
fn still_away() -> SinkError {
    let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "it is still away");
    SinkError::Unavailable(Arc::new(late.into()))
}

fn in_kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use async_trait::async_trait;
    use futures::future::join_all;
    use serde_json::value::RawValue;
    use shared::name::{Attempt, Instance};

    use super::*;

    /// Away until a moment, and slow.
    struct Fake {
        back: Instant,
        calls: AtomicUsize,
        under_way: AtomicUsize,
        most_under_way: AtomicUsize,
    }

    #[async_trait]
    impl Sink for Fake {
        async fn find(&self, _: BatchId) -> Result<Option<Completed>, SinkError> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            if Instant::now() < self.back {
                return Err(SinkError::Unavailable(sqlx::Error::WorkerCrashed.into()));
            }
            Ok(None)
        }

        async fn commit(&self, marker: Marker, _: Arc<Rows>) -> Result<Committed, SinkError> {
            let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_under_way.fetch_max(under_way, Ordering::Relaxed);
            sleep(Duration::from_millis(10)).await;
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            Ok(Committed::Now(marker.completed))
        }
    }

    fn entrance(away: Duration, bytes: u64) -> (Arc<Fake>, Entrance) {
        let sink = Arc::new(Fake {
            back: Instant::now() + away,
            calls: AtomicUsize::default(),
            under_way: AtomicUsize::default(),
            most_under_way: AtomicUsize::default(),
        });
        (Arc::clone(&sink), Entrance::new(sink, bytes))
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_wait_one_at_a_time_finds_out_whether_the_sink_is_back() {
        let away = Duration::from_secs(20);
        let (sink, entrance) = entrance(away, 1);
        let start = Instant::now();
        let found = join_all((0..500).map(|_| entrance.find(BatchId::generate()))).await;
        assert!(found.iter().all(Result::is_ok));
        let recovery = start.elapsed().checked_sub(away).unwrap();
        assert!(recovery < Duration::from_secs(5), "{recovery:?}");
        // All ask once, when nobody knows yet, and once when it is back.
        let tries = sink.calls.load(Ordering::Relaxed).saturating_sub(2 * 500);
        assert!(tries <= 20, "{tries} tries in {away:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_for_all_at_once() {
        let (_, entrance) = entrance(Duration::from_hours(1), 1);
        let start = Instant::now();
        let found = join_all((0..100).map(|_| entrance.find(BatchId::generate()))).await;
        assert!(
            found
                .iter()
                .all(|found| matches!(found, Err(SinkError::Unavailable(_))))
        );
        assert!(start.elapsed() < PATIENCE + Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_bounded_by_bytes_and_not_by_number() {
        let row = |bytes: usize| {
            let text = format!("\"{}\"", "x".repeat(bytes));
            Rows::Json(std::iter::once(RawValue::from_string(text).unwrap()).collect())
        };
        // One that is larger than all the room goes alone.
        for (bytes, at_once) in [(400, 64), (10_000, 6), (100_000, 1)] {
            let (sink, entrance) = entrance(Duration::ZERO, 64 * KIB);
            let commits = (0..100).map(async |_| {
                let rows = Arc::new(row(bytes));
                let _room = entrance.room(&rows).await;
                let marker = Marker {
                    batch: BatchId::generate(),
                    attempt: Attempt::new(1),
                    writer: Instance::from("w".to_owned()),
                    completed: Completed::default(),
                    batch_key: None,
                };
                entrance.commit(marker, rows).await.unwrap();
            });
            join_all(commits).await;
            let most = sink.most_under_way.load(Ordering::Relaxed);
            assert_eq!(most, at_once, "{bytes} bytes each");
        }
    }
}
