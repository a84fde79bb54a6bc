//! The batches in this worker's hands, and those that it gave back, for its presence.
//!
//! Who gets a batch that was delivered before has to ask whether its last worker died of it. So a worker that
//! gives one back says so first: [`Holding::announce`] returns when the broker has the word.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::id::BatchId;
use shared::presence::{Progress, RETURNED_FOR};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

/// How long giving back waits for the word to be out. Then it is given back all the same: whoever gets it is
/// only more careful than needed.
const ANNOUNCE_PATIENCE: Duration = Duration::from_secs(1);

/// What is in this worker's hands; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Holding(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    batches: Mutex<Batches>,
    /// There is something to say.
    news: Notify,
    /// How many returns the broker has been told of.
    said: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Batches {
    held: HashMap<BatchId, Hold>,
    /// What was given back and not yet said.
    returned: Vec<(BatchId, Instant)>,
    /// How many there have been.
    returns: u64,
}

#[derive(Debug, Default)]
struct Hold {
    /// One batch may be held twice: a redelivery arrived while the first delivery's connection was being given up.
    deliveries: usize,
    /// How far it has come, if its handler says so.
    progress: Option<Progress>,
}

/// What was given back since it was last said.
#[derive(Debug)]
pub struct Returns {
    /// Which batches.
    pub batches: Vec<BatchId>,
    until: u64,
}

impl Holding {
    /// Holds a batch for as long as the answer lives.
    #[must_use]
    pub fn hold(&self, batch: BatchId) -> HoldGuard {
        self.lock().held.entry(batch).or_default().deliveries += 1;
        HoldGuard {
            holding: self.clone(),
            batch,
        }
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> Vec<BatchId> {
        self.lock().held.keys().copied().collect()
    }

    /// Whoever has the answer can say how far this batch has come.
    #[must_use]
    pub fn reporter(&self, batch: BatchId) -> Reporter {
        Reporter(Some((self.clone(), batch)))
    }

    /// How far batches have come, of those that say so.
    #[must_use]
    pub fn progress(&self) -> HashMap<BatchId, Progress> {
        let own = self.lock();
        let told = own.held.iter();
        told.filter_map(|(batch, hold)| Some((*batch, hold.progress?)))
            .collect()
    }

    /// Notes that these are given back, or were lost with the connection, and that this worker lives.
    pub fn note_returned(&self, batches: impl IntoIterator<Item = BatchId>) {
        self.note(batches);
    }

    /// The same, and waits until it has been said, for a while.
    pub async fn announce(&self, batches: impl IntoIterator<Item = BatchId>) {
        let mut said = self.0.said.subscribe();
        let until = self.note(batches);
        let waited = timeout(ANNOUNCE_PATIENCE, said.wait_for(|said| *said >= until)).await;
        if waited.is_err() {
            tracing::debug!("gave a batch back before it could say so");
        }
    }

    fn note(&self, batches: impl IntoIterator<Item = BatchId>) -> u64 {
        let now = Instant::now();
        let mut own = self.lock();
        let before = own.returned.len();
        own.returned
            .extend(batches.into_iter().map(|batch| (batch, now)));
        own.returns += (own.returned.len() - before) as u64;
        self.0.news.notify_one();
        own.returns
    }

    /// Waits until there is something to say.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// What is to be said now. It comes again until it [was said](Self::said), or is of no interest any more.
    #[must_use]
    pub fn returns(&self) -> Returns {
        let now = Instant::now();
        let mut own = self.lock();
        own.returned
            .retain(|(_, at)| now.duration_since(*at) < RETURNED_FOR);
        Returns {
            batches: own.returned.iter().map(|(batch, _)| *batch).collect(),
            until: own.returns,
        }
    }

    /// Somebody has heard it.
    pub fn said(&self, returns: &Returns) {
        let mut own = self.lock();
        // What was noted meanwhile stands behind it.
        let newer = usize::try_from(own.returns - returns.until).unwrap_or(usize::MAX);
        let said = own.returned.len().saturating_sub(newer);
        own.returned.drain(..said);
        drop(own);
        self.0.said.send_if_modified(|until| {
            let further = *until < returns.until;
            *until = returns.until.max(*until);
            further
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Batches> {
        self.0
            .batches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says how far one batch has come, to whoever asks the coordinator; cheap to clone. The default says it to nobody.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Option<(Holding, BatchId)>);

impl Reporter {
    /// It has come so far now. Of no effect when the batch is not in this worker's hands any more.
    pub fn report(&self, progress: Progress) {
        if let Some((holding, batch)) = &self.0
            && let Some(hold) = holding.lock().held.get_mut(batch)
        {
            hold.progress = Some(progress);
        }
    }
}

/// Ends a [`Holding::hold`].
#[derive(Debug)]
pub struct HoldGuard {
    holding: Holding,
    batch: BatchId,
}

impl HoldGuard {
    /// The batch is given back. `heard`: the broker can still be told, so this waits until it was.
    pub async fn give_back(&self, heard: bool) {
        if heard {
            self.holding.announce([self.batch]).await;
        } else {
            self.holding.note_returned([self.batch]);
        }
    }
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        let mut own = self.holding.lock();
        if let Some(hold) = own.held.get_mut(&self.batch) {
            hold.deliveries -= 1;
            if hold.deliveries == 0 {
                own.held.remove(&self.batch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_held_until_its_last_delivery_is_gone() {
        let (holding, batch) = (Holding::default(), BatchId::generate());
        let (first, second) = (holding.hold(batch), holding.hold(batch));
        drop(first);
        assert_eq!(holding.list(), [batch]);
        drop(second);
        assert!(holding.list().is_empty());
    }

    #[test]
    fn progress_is_that_of_batches_at_hand() {
        let (holding, batch) = (Holding::default(), BatchId::generate());
        let guard = holding.hold(batch);
        let _silent = holding.hold(BatchId::generate());
        let reporter = holding.reporter(batch);
        assert!(holding.progress().is_empty());
        for done in [1, 2] {
            let progress = Progress {
                done,
                total: Some(2),
            };
            reporter.report(progress);
            assert_eq!(holding.progress(), HashMap::from([(batch, progress)]));
        }
        drop(guard);
        reporter.report(Progress {
            done: 3,
            total: None,
        });
        assert!(holding.progress().is_empty(), "too late");
    }

    #[tokio::test(start_paused = true)]
    async fn giving_back_waits_for_the_word() {
        let holding = Holding::default();
        let (first, second) = (BatchId::generate(), BatchId::generate());
        let announcing = tokio::spawn({
            let holding = holding.clone();
            async move { holding.announce([first]).await }
        });
        holding.news().await;
        let saying = holding.returns();
        assert_eq!(saying.batches, [first]);
        holding.note_returned([second]);
        assert!(!announcing.is_finished());
        holding.said(&saying);
        announcing.await.unwrap();
        assert_eq!(
            holding.returns().batches,
            [second],
            "said later, so not yet"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_and_old_returns_are_forgotten() {
        let holding = Holding::default();
        holding.announce([BatchId::generate()]).await;
        assert_eq!(holding.returns().batches.len(), 1, "still to be said");
        tokio::time::advance(RETURNED_FOR).await;
        assert!(holding.returns().batches.is_empty());
    }
}
