//! Many small commits, few transactions: whatever gathered while the last group was being written goes
//! next, up to a limit. Alone, nobody waits; under load, a commit costs a fraction of a disk sync.
//! One batch that the database refuses never fails its neighbours: then each is written on its own.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::{Committed, Marker, SinkError};
use crate::handler::Rows;

/// Most batches in one transaction.
const MAX_GROUP: usize = 256;
/// A group is closed at so many rows: about a second of an SQLite transaction.
const MAX_GROUP_ROWS: usize = 100_000;
/// Commits that may wait; more than a worker has slots.
const QUEUE: usize = 4_096;

/// One batch to store.
pub(super) struct Write {
    pub(super) marker: Marker,
    pub(super) rows: Arc<Rows>,
}

/// A database that writes groups.
#[async_trait]
pub(super) trait GroupWriter: Send + 'static {
    /// Stores all, in order, in one transaction. No two are of the same batch.
    async fn write(&mut self, group: &[&Write]) -> Result<Vec<Committed>, SinkError>;

    /// After a failure that leaves open what was stored: reads the marker again.
    async fn look(&mut self, marker: &Marker) -> Result<Option<Committed>, SinkError>;
}

type Waiting = (Write, oneshot::Sender<Result<Committed, SinkError>>);

/// The way to the task that writes.
#[derive(Debug)]
pub(super) struct Groups {
    queue: mpsc::Sender<Waiting>,
    _writer: AbortOnDropHandle<()>,
}

impl Groups {
    pub(super) fn start(writer: impl GroupWriter) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let task = tokio::spawn(run(writer, waiting));
        Self {
            queue,
            _writer: AbortOnDropHandle::new(task),
        }
    }

    pub(super) async fn commit(&self, write: Write) -> Result<Committed, SinkError> {
        let (answer, answered) = oneshot::channel();
        let gone = || SinkError::Unavailable(sqlx::Error::WorkerCrashed.into());
        self.queue.send((write, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

async fn run(mut writer: impl GroupWriter, mut waiting: mpsc::Receiver<Waiting>) {
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let group;
        (group, left_over) = gather(first, &mut waiting);
        let (batches, answers): (Vec<Write>, Vec<_>) = group.into_iter().unzip();
        for (answer, result) in answers.into_iter().zip(write(&mut writer, &batches).await) {
            // Nobody waits any more: the marker speaks for the batch when it is delivered again.
            drop(answer.send(result));
        }
    }
}

/// The first and whatever waits behind it; the one that did not fit comes back.
fn gather(
    first: Waiting,
    waiting: &mut mpsc::Receiver<Waiting>,
) -> (Vec<Waiting>, Option<Waiting>) {
    let mut batches = HashSet::from([first.0.marker.batch]);
    let mut rows = count(&first.0.rows);
    let mut group = vec![first];
    while group.len() < MAX_GROUP && rows < MAX_GROUP_ROWS {
        let Ok(next) = waiting.try_recv() else { break };
        // The same batch twice: the second must see the first one's marker.
        if !batches.insert(next.0.marker.batch) {
            return (group, Some(next));
        }
        rows += count(&next.0.rows);
        group.push(next);
    }
    (group, None)
}

fn count(rows: &Rows) -> usize {
    match rows {
        Rows::None => 0,
        Rows::Json(rows) => rows.len(),
        Rows::Slice(slice) => slice.rows.len(),
    }
}

async fn write(
    writer: &mut impl GroupWriter,
    batches: &[Write],
) -> Vec<Result<Committed, SinkError>> {
    let group: Vec<&Write> = batches.iter().collect();
    match writer.write(&group).await {
        Ok(committed) => committed.into_iter().map(Ok).collect(),
        Err(error @ SinkError::Unavailable(_)) => look_all(writer, &group, &error).await,
        Err(error) if group.len() == 1 => vec![Err(error)],
        Err(_) => one_by_one(writer, &group).await,
    }
}

async fn one_by_one(
    writer: &mut impl GroupWriter,
    group: &[&Write],
) -> Vec<Result<Committed, SinkError>> {
    let mut results = Vec::with_capacity(group.len());
    for write in group {
        results.push(match writer.write(&[*write]).await {
            Ok(mut committed) => committed
                .pop()
                .ok_or_else(|| SinkError::Schema("a commit without an answer".into())),
            Err(error @ SinkError::Unavailable(_)) => look(writer, &write.marker, &error).await,
            Err(error) => Err(error),
        });
    }
    results
}

async fn look_all(
    writer: &mut impl GroupWriter,
    group: &[&Write],
    error: &SinkError,
) -> Vec<Result<Committed, SinkError>> {
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
async fn look(
    writer: &mut impl GroupWriter,
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
    use std::sync::Mutex;

    use shared::id::BatchId;
    use shared::name::{Attempt, Instance};
    use shared::outcome::Completed;

    use super::*;

    /// How a write of the fake goes.
    #[derive(Clone, Copy, PartialEq)]
    enum Mood {
        Well,
        /// Everything is stored, and the answer is lost.
        AnswerLost,
        Away,
    }

    struct Fake {
        stored: Arc<Mutex<HashMap<BatchId, Marker>>>,
        mood: Mood,
        /// Refused whenever it is in a group.
        refused: Option<BatchId>,
    }

    #[async_trait]
    impl GroupWriter for Fake {
        async fn write(&mut self, group: &[&Write]) -> Result<Vec<Committed>, SinkError> {
            if group
                .iter()
                .any(|write| Some(write.marker.batch) == self.refused)
            {
                return Err(SinkError::Refused(
                    sqlx::Error::InvalidArgument("no".into()).into(),
                ));
            }
            if self.mood != Mood::Away {
                let mut stored = self.stored.lock().unwrap();
                stored.extend(
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

        async fn look(&mut self, marker: &Marker) -> Result<Option<Committed>, SinkError> {
            let stored = self.stored.lock().unwrap();
            Ok(stored
                .get(&marker.batch)
                .map(|stored| Committed::Now(stored.completed.clone())))
        }
    }

    fn new_write() -> Write {
        let marker = Marker {
            batch: BatchId::generate(),
            attempt: Attempt::new(1),
            writer: Instance::from("w".to_owned()),
            completed: Completed::default(),
        };
        Write {
            marker,
            rows: Arc::new(Rows::None),
        }
    }

    async fn commit_all(
        mood: Mood,
        refused: Option<usize>,
    ) -> (Vec<Result<Committed, SinkError>>, usize) {
        let stored = Arc::new(Mutex::new(HashMap::new()));
        let writes: Vec<Write> = (0..20).map(|_| new_write()).collect();
        let refused = refused.map(|n| writes[n].marker.batch);
        let groups = Groups::start(Fake {
            stored: Arc::clone(&stored),
            mood,
            refused,
        });
        let results =
            futures::future::join_all(writes.into_iter().map(|write| groups.commit(write))).await;
        let count = stored.lock().unwrap().len();
        (results, count)
    }

    #[tokio::test]
    async fn a_lost_answer_is_found_in_the_markers() {
        let (results, _) = commit_all(Mood::AnswerLost, None).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    #[tokio::test]
    async fn a_database_that_is_away_stores_nothing_and_says_so() {
        let (results, stored) = commit_all(Mood::Away, None).await;
        assert!(
            results
                .iter()
                .all(|result| matches!(result, Err(SinkError::Unavailable(_))))
        );
        assert_eq!(stored, 0);
    }

    #[tokio::test]
    async fn a_refused_batch_fails_alone() {
        let (results, stored) = commit_all(Mood::Well, Some(7)).await;
        for (n, result) in results.iter().enumerate() {
            assert_eq!(matches!(result, Err(SinkError::Refused(_))), n == 7, "{n}");
        }
        assert_eq!(stored, 19);
    }
}
