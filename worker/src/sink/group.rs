//! Many small commits, few transactions. Alone, nobody waits unless the config says so; under load, groups are
//! [gathered](Gathering), and a commit costs a fraction of a disk sync. A group that is refused is halved until only
//! the guilty batch is left: that one fails, and its neighbours have cost a transaction for each halving.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use shared::gather::Gathering;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::waiting::{Grouping, Next, Waiting, Write};
use super::{Committed, Marker, SinkError};

/// What writes groups.
#[async_trait]
pub(super) trait GroupWriter: Send + Sync + 'static {
    /// Rows in the form in which they are written.
    type Rows: Send + Sync + 'static;

    /// Stores all, in order, in one transaction. No two are of the same batch.
    async fn write(&self, group: &[&Write<Self::Rows>]) -> Result<Vec<Committed>, SinkError>;

    /// After a failure that leaves open what was stored: reads the marker again.
    async fn look(&self, marker: &Marker) -> Result<Option<Committed>, SinkError>;
}

type Answer = oneshot::Sender<Result<Committed, SinkError>>;

/// The way to the tasks that write.
#[derive(Debug)]
pub(super) struct Groups<R> {
    shared: Arc<Shared<R>>,
    _writers: Vec<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Shared<R> {
    waiting: Mutex<Waiting<R, Answer>>,
    news: Notify,
    /// No batch waits for company any more.
    hurry: CancellationToken,
    /// The last group found the sink away: the next batch finds out whether it is back, and does not wait for company.
    is_away: AtomicBool,
}

impl<R: Send + Sync + 'static> Groups<R> {
    /// `hurry` ends all waiting for company: the worker drains.
    pub(super) fn start(
        writer: impl GroupWriter<Rows = R>,
        grouping: Grouping,
        hurry: CancellationToken,
    ) -> Self {
        let writers = grouping.concurrency;
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Waiting::new(grouping)),
            news: Notify::new(),
            hurry,
            is_away: AtomicBool::new(false),
        });
        let writer = Arc::new(writer);
        let start = |_| {
            let task = tokio::spawn(run(Arc::clone(&writer), Arc::clone(&shared)));
            AbortOnDropHandle::new(task)
        };
        let writers = (0..writers).map(start).collect();
        Self {
            shared,
            _writers: writers,
        }
    }

    pub(super) async fn commit(&self, write: Write<R>) -> Result<Committed, SinkError> {
        let (answer, answered) = oneshot::channel();
        self.shared.lock().push(write, answer, Instant::now());
        self.shared.news.notify_one();
        let gone = |_| SinkError::Unavailable(sqlx::Error::WorkerCrashed.into());
        answered.await.map_err(gone)?
    }
}

impl<R> Shared<R> {
    fn lock(&self) -> MutexGuard<'_, Waiting<R, Answer>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next group.
    async fn next(&self) -> Vec<(Write<R>, Answer)> {
        loop {
            let is_hurried = self.hurry.is_cancelled() || self.is_away.load(Ordering::Acquire);
            let next = self.lock().take(Instant::now(), is_hurried);
            match next {
                Next::Group(group) => {
                    // Another writer may have something to do as well.
                    if !self.lock().is_empty() {
                        self.news.notify_one();
                    }
                    return group;
                }
                Next::At(due) => tokio::select! {
                    () = self.news.notified() => {}
                    () = sleep_until(due) => {}
                    () = self.hurry.cancelled() => {}
                },
                Next::Nothing => self.news.notified().await,
            }
        }
    }
}

async fn run<W: GroupWriter>(writer: Arc<W>, shared: Arc<Shared<W::Rows>>) {
    let mut gathering = Gathering::new();
    loop {
        gathering.gathered().await;
        let (batches, answers): (Vec<_>, Vec<_>) = shared.next().await.into_iter().unzip();
        gathering.begin();
        let group: Vec<&Write<W::Rows>> = batches.iter().collect();
        let results = write(&*writer, &group).await;
        let is_away = results.iter().any(|result| away(result).is_some());
        shared.is_away.store(is_away, Ordering::Release);
        for (answer, result) in answers.into_iter().zip(results) {
            // Nobody waits any more: the marker speaks for the batch when it is delivered again.
            drop(answer.send(result));
        }
    }
}

type Results = Vec<Result<Committed, SinkError>>;

/// Writes a group; halves it when it is refused.
fn write<'a, W: GroupWriter>(
    writer: &'a W,
    group: &'a [&'a Write<W::Rows>],
) -> BoxFuture<'a, Results> {
    async move {
        match writer.write(group).await {
            Ok(committed) => committed.into_iter().map(Ok).collect(),
            Err(error @ SinkError::Unavailable(_)) => look_all(writer, group, &error).await,
            Err(error) if group.len() == 1 => vec![Err(error)],
            Err(_) => {
                metrics::counter!("tidegate_sink_bisections_total").increment(1);
                let (first, second) = group.split_at(group.len() / 2);
                let mut results = write(writer, first).await;
                match results.iter().find_map(away) {
                    Some(error) => results.resize_with(group.len(), || Err(error.clone())),
                    None => results.extend(write(writer, second).await),
                }
                results
            }
        }
    }
    .boxed()
}

fn away(result: &Result<Committed, SinkError>) -> Option<SinkError> {
    match result {
        Err(error @ SinkError::Unavailable(_)) => Some(error.clone()),
        _ => None,
    }
}

async fn look_all<W: GroupWriter>(
    writer: &W,
    group: &[&Write<W::Rows>],
    error: &SinkError,
) -> Results {
    let mut results = Vec::with_capacity(group.len());
    for write in group {
        let result = look(writer, &write.marker, error).await;
        let is_missing = result.is_err();
        results.push(result);
        // Neither are the others in, which were in the same transaction.
        if is_missing {
            results.resize_with(group.len(), || Err(error.clone()));
            break;
        }
    }
    results
}

/// The connection broke, perhaps at COMMIT: only the marker knows.
async fn look<W: GroupWriter>(
    writer: &W,
    marker: &Marker,
    error: &SinkError,
) -> Result<Committed, SinkError> {
    match writer.look(marker).await {
        Ok(Some(committed)) => Ok(committed),
        Ok(None) | Err(_) => Err(error.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use shared::id::BatchId;
    use shared::name::{Attempt, Instance};
    use shared::outcome::Completed;

    use super::*;

    /// How a write of the fake goes.
    #[derive(Clone, Copy, PartialEq, Default)]
    enum Mood {
        #[default]
        Well,
        /// Everything is stored, and the answer is lost.
        AnswerLost,
        Away,
    }

    #[derive(Default)]
    struct Kept {
        markers: HashMap<BatchId, Marker>,
        /// Batches of each try.
        tries: Vec<usize>,
        at_once: usize,
        most_at_once: usize,
    }

    #[derive(Default)]
    struct Fake {
        kept: Arc<Mutex<Kept>>,
        mood: Mood,
        /// Refused whenever it is in a group.
        refused: Option<BatchId>,
    }

    #[async_trait]
    impl GroupWriter for Fake {
        type Rows = ();

        async fn write(&self, group: &[&Write<()>]) -> Result<Vec<Committed>, SinkError> {
            {
                let mut kept = self.kept.lock().unwrap();
                kept.tries.push(group.len());
                kept.at_once += 1;
                kept.most_at_once = kept.most_at_once.max(kept.at_once);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut kept = self.kept.lock().unwrap();
            kept.at_once -= 1;
            if group
                .iter()
                .any(|write| Some(write.marker.batch) == self.refused)
            {
                return Err(SinkError::Refused(
                    sqlx::Error::InvalidArgument("no".into()).into(),
                ));
            }
            if self.mood != Mood::Away {
                kept.markers.extend(
                    group
                        .iter()
                        .map(|write| (write.marker.batch, write.marker.clone())),
                );
            }
            match self.mood {
                Mood::Well => Ok(group
                    .iter()
                    .map(|write| Committed::Now(write.marker.completed.clone()))
                    .collect()),
                Mood::AnswerLost | Mood::Away => {
                    Err(SinkError::Unavailable(sqlx::Error::WorkerCrashed.into()))
                }
            }
        }

        async fn look(&self, marker: &Marker) -> Result<Option<Committed>, SinkError> {
            let kept = self.kept.lock().unwrap();
            Ok(kept
                .markers
                .get(&marker.batch)
                .map(|stored| Committed::Now(stored.completed.clone())))
        }
    }

    fn new_write() -> Write<()> {
        let marker = Marker {
            batch: BatchId::generate(),
            attempt: Attempt::new(1),
            writer: Instance::from("w".to_owned()),
            completed: Completed::default(),
            batch_key: None,
        };
        Write {
            marker,
            rows: (),
            bytes: 1,
        }
    }

    async fn commit_all(fake: Fake, writes: Vec<Write<()>>, concurrency: usize) -> (Results, Kept) {
        let kept = Arc::clone(&fake.kept);
        let grouping = Grouping {
            concurrency,
            ..Grouping::default()
        };
        let groups = Groups::start(fake, grouping, CancellationToken::new());
        let results =
            futures::future::join_all(writes.into_iter().map(|write| groups.commit(write))).await;
        let kept = std::mem::take(&mut *kept.lock().unwrap());
        (results, kept)
    }

    fn writes(count: usize) -> Vec<Write<()>> {
        (0..count).map(|_| new_write()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_found_in_the_markers() {
        let fake = Fake {
            mood: Mood::AnswerLost,
            ..Fake::default()
        };
        let (results, _) = commit_all(fake, writes(20), 1).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_that_is_away_stores_nothing_and_says_so() {
        let fake = Fake {
            mood: Mood::Away,
            ..Fake::default()
        };
        let (results, kept) = commit_all(fake, writes(20), 1).await;
        assert!(
            results
                .iter()
                .all(|result| matches!(result, Err(SinkError::Unavailable(_))))
        );
        assert!(kept.markers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_batch_fails_alone_and_costs_a_transaction_for_each_halving() {
        let writes = writes(256);
        for guilty in [0, 7, 100, 255] {
            let fake = Fake {
                refused: Some(writes[guilty].marker.batch),
                ..Fake::default()
            };
            let copies = writes.iter().map(|write| Write {
                marker: write.marker.clone(),
                ..new_write()
            });
            let (results, kept) = commit_all(fake, copies.collect(), 1).await;
            for (n, result) in results.iter().enumerate() {
                assert_eq!(
                    matches!(result, Err(SinkError::Refused(_))),
                    n == guilty,
                    "{n}"
                );
            }
            assert_eq!(kept.markers.len(), 255);
            let halvings = 8;
            assert!(
                kept.tries.len() <= 2 + 2 * halvings,
                "{} transactions",
                kept.tries.len()
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_gathers_while_a_group_is_written_goes_next() {
        let (_, kept) = commit_all(Fake::default(), writes(300), 1).await;
        assert_eq!(kept.tries, [256, 44]);
        assert_eq!(kept.most_at_once, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_groups_are_written_at_once_as_the_config_says() {
        let (_, kept) = commit_all(Fake::default(), writes(2_000), 3).await;
        assert_eq!(kept.most_at_once, 3);
        assert_eq!(kept.tries.iter().sum::<usize>(), 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_is_waited_for_once_and_not_when_draining() {
        let hurry = CancellationToken::new();
        let grouping = Grouping {
            timeout: Some(Duration::from_secs(2)),
            ..Grouping::default()
        };
        let groups = Groups::start(Fake::default(), grouping, hurry.clone());
        let start = Instant::now();
        let late = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            groups.commit(new_write()).await
        };
        let (first, second) = tokio::join!(groups.commit(new_write()), late);
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(start.elapsed().as_secs(), 2);
        let (third, ()) = tokio::join!(groups.commit(new_write()), async { hurry.cancel() });
        assert!(third.is_ok());
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_out_whether_the_sink_is_back_waits_for_nobody() {
        let fake = Fake {
            mood: Mood::Away,
            ..Fake::default()
        };
        let grouping = Grouping {
            timeout: Some(Duration::from_mins(1)),
            ..Grouping::default()
        };
        let groups = Groups::start(fake, grouping, CancellationToken::new());
        let start = Instant::now();
        assert!(groups.commit(new_write()).await.is_err());
        assert_eq!(start.elapsed().as_secs(), 60);
        assert!(groups.commit(new_write()).await.is_err());
        assert_eq!(start.elapsed().as_secs(), 60);
    }
}
