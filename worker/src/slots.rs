//! The slots: how many batches run at once. Their number may change while batches run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::pace::Pace;

/// The slots of a worker; cheap to clone.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Semaphore,
    count: watch::Sender<u32>,
    /// Slots that are taken away as soon as their batches have ended.
    surplus: Mutex<u32>,
    taken: Mutex<Taken>,
    pace: Pace,
}

/// How many are taken, and for how long they were, one beside the other.
#[derive(Debug)]
struct Taken {
    count: u32,
    changed: Instant,
    time: Duration,
    asked: Instant,
}

/// A slot, or all of them. Dropping it makes room for the next batch.
#[derive(Debug)]
pub struct Slot<'a> {
    /// Taken out when it is dropped.
    permit: Option<SemaphorePermit<'a>>,
    slots: &'a Slots,
    since: Instant,
}

impl Slots {
    /// So many. `pace` is told how long each is kept.
    #[must_use]
    pub fn new(count: u32, pace: Pace) -> Self {
        Self(Arc::new(Shared {
            free: Semaphore::new(count as usize),
            count: watch::Sender::new(count),
            surplus: Mutex::default(),
            taken: Mutex::new(Taken::none()),
            pace,
        }))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        *self.0.count.borrow()
    }

    /// Whether any is taken.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.free.available_permits() < self.count() as usize
    }

    /// How much of the time since this was asked last they were free, of all slots together (0 to 1).
    #[must_use]
    pub fn idle_share(&self) -> f64 {
        let (taken, passed) = self.taken().ask();
        let all = passed.as_secs_f64() * f64::from(self.count());
        if all > 0.0 {
            (1.0 - taken.as_secs_f64() / all).max(0.0)
        } else {
            0.0
        }
    }

    /// Waits for one, in the order of asking.
    pub async fn take(&self) -> Slot<'_> {
        self.take_many(1).await
    }

    /// One that is free, unless somebody waits for it.
    #[must_use]
    pub fn try_take(&self) -> Option<Slot<'_>> {
        let permit = self.0.free.try_acquire().ok()?;
        Some(self.slot(permit))
    }

    /// Waits until all are free, and takes them. Whoever asks after this waits until they are given back.
    pub async fn take_all(&self) -> Slot<'_> {
        let mut count = self.0.count.subscribe();
        loop {
            let all = *count.borrow_and_update();
            tokio::select! {
                biased;
                // Slots that were added may be all that was waited for, and not all that there are.
                Ok(()) = count.changed() => {}
                slot = self.take_many(all) => return slot,
            }
        }
    }

    async fn take_many(&self, count: u32) -> Slot<'_> {
        let permit = self.0.free.acquire_many(count).await;
        self.slot(permit.expect("the slots are never closed"))
    }

    fn slot<'a>(&'a self, permit: SemaphorePermit<'a>) -> Slot<'a> {
        let since = Instant::now();
        self.taken().note(since, |count| count + held(&permit));
        Slot {
            permit: Some(permit),
            slots: self,
            since,
        }
    }

    /// Changes their number. Batches that run keep theirs until they end.
    pub fn resize(&self, count: u32) {
        let mut surplus = self.surplus();
        let before = self.0.count.send_replace(count);
        if count >= before {
            let more = count - before;
            let kept = more.min(*surplus);
            *surplus -= kept;
            self.0.free.add_permits((more - kept) as usize);
        } else {
            let fewer = before - count;
            let forgotten = self.0.free.forget_permits(fewer as usize);
            *surplus += fewer - u32::try_from(forgotten).unwrap_or(fewer);
        }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn surplus(&self) -> std::sync::MutexGuard<'_, u32> {
        self.0
            .surplus
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn none() -> Self {
        let now = Instant::now();
        Self {
            count: 0,
            changed: now,
            time: Duration::ZERO,
            asked: now,
        }
    }

    fn note(&mut self, now: Instant, change: impl FnOnce(u32) -> u32) {
        self.time += now.duration_since(self.changed) * self.count;
        self.changed = now;
        self.count = change(self.count);
    }

    /// For how long slots were taken since this was asked last, and how long that was.
    fn ask(&mut self) -> (Duration, Duration) {
        let now = Instant::now();
        self.note(now, |count| count);
        let asked = std::mem::replace(&mut self.asked, now);
        (std::mem::take(&mut self.time), now.duration_since(asked))
    }
}

/// How many slots this is.
fn held(permit: &SemaphorePermit<'_>) -> u32 {
    u32::try_from(permit.num_permits()).unwrap_or(u32::MAX)
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.slots
            .0
            .pace
            .note_slot(now.duration_since(self.since), now);
        let Some(mut permit) = self.permit.take() else {
            return;
        };
        let held = held(&permit);
        self.slots.taken().note(now, |count| count - held);
        let mut surplus = self.slots.surplus();
        let taken_away = held.min(*surplus);
        *surplus -= taken_away;
        if let Some(gone) = permit.split(taken_away as usize) {
            gone.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn their_number_changes_while_batches_run() {
        let slots = Slots::new(2, Pace::new(0..=0));
        let (one, two) = (slots.take().await, slots.take().await);
        slots.resize(1);
        drop(one);
        assert!(slots.take().now_or_never().is_none(), "taken away");
        drop(two);
        assert!(!slots.is_running());
        let one = slots.take().await;
        assert!(slots.take().now_or_never().is_none());
        slots.resize(3);
        let rest = (slots.take().await, slots.take().await);
        assert!(slots.take().now_or_never().is_none());
        drop((one, rest));
        assert!(!slots.is_running());
    }

    #[tokio::test(start_paused = true)]
    async fn how_long_they_were_free_is_known() {
        let slots = Slots::new(4, Pace::new(0..=0));
        let pass = || tokio::time::advance(Duration::from_secs(1));
        let one = slots.take().await;
        pass().await;
        let two = slots.take_many(2).await;
        pass().await;
        assert!((slots.idle_share() - 0.5).abs() < 0.01);
        drop(one);
        pass().await;
        drop(two);
        assert!((slots.idle_share() - 0.5).abs() < 0.01);
        pass().await;
        assert!((slots.idle_share() - 1.0).abs() < 0.01);
    }

    #[tokio::test]
    async fn who_waits_for_all_slots_gets_as_many_as_there_are() {
        let slots = Slots::new(2, Pace::new(0..=0));
        let one = slots.try_take().unwrap();
        let mut all = std::pin::pin!(slots.take_all());
        assert!(all.as_mut().now_or_never().is_none());
        assert!(slots.try_take().is_none(), "the free one is waited for");
        slots.resize(1);
        drop(one);
        assert!(all.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_slot_that_was_to_go_may_stay() {
        let slots = Slots::new(3, Pace::new(0..=0));
        let all = slots.take_all().await;
        slots.resize(1);
        slots.resize(2);
        drop(all);
        let two = (slots.take().await, slots.take().await);
        assert!(slots.take().now_or_never().is_none());
        drop(two);
    }
}
