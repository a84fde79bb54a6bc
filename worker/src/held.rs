//! A delivery in this worker's hands. It can be settled with the broker once, by value; acks of many are
//! sent together by [`Acks`], which never covers one that is still being worked on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use shared::broker::{AckWindow, BrokerError, Settle};
use shared::id::BatchId;
use tokio::sync::mpsc;

/// A delivery that is neither acked nor given back. Dropping it settles nothing: the broker hands it out
/// again when the connection ends.
#[derive(Debug)]
pub struct Held {
    tag: u64,
    settle: Settle,
    acks: mpsc::UnboundedSender<Event>,
}

/// Which acks are due on one channel.
#[derive(Debug)]
pub struct Acks {
    settle: Settle,
    events: mpsc::UnboundedReceiver<Event>,
}

#[derive(Debug)]
enum Event {
    Delivered(u64),
    Done(u64),
    Settled(u64),
}

/// Makes [`Held`]s for one channel. Bounded by the channel's prefetch, like everything about deliveries.
#[derive(Debug, Clone)]
pub struct Hands {
    settle: Settle,
    acks: mpsc::UnboundedSender<Event>,
}

impl Hands {
    /// For this channel; [`Acks::run`] has to run beside.
    #[must_use]
    pub fn new(settle: Settle) -> (Self, Acks) {
        let (acks, events) = mpsc::unbounded_channel();
        (
            Self {
                settle: settle.clone(),
                acks,
            },
            Acks { settle, events },
        )
    }

    /// Takes a delivery, in the order of delivery.
    #[must_use]
    pub fn take(&self, tag: u64) -> Held {
        // The receiver is gone only when the channel is; then nothing can be acked anyway.
        let _ = self.acks.send(Event::Delivered(tag));
        Held {
            tag,
            settle: self.settle.clone(),
            acks: self.acks.clone(),
        }
    }

    /// Stops new deliveries.
    pub async fn stop(&self) -> Result<(), BrokerError> {
        self.settle.cancel().await
    }
}

impl Held {
    /// Its outcome is safe with the broker: the delivery may go.
    pub fn ack(self) {
        let _ = self.acks.send(Event::Done(self.tag));
    }

    /// Somebody else should do it, at once.
    pub async fn give_back(self) {
        let given = self.settle.nack(self.tag).await;
        self.settled(given);
    }

    /// Nobody can read it: the broker dead-letters it.
    pub async fn reject(self) {
        let rejected = self.settle.reject(self.tag).await;
        self.settled(rejected);
    }

    /// A delivery that could not be settled stays open: no ack of others may cover it, and the broker takes
    /// it back with the channel.
    fn settled(self, result: Result<(), BrokerError>) {
        match result {
            Ok(()) => drop(self.acks.send(Event::Settled(self.tag))),
            Err(error) => tracing::debug!(%error, "could not give a delivery back"),
        }
    }
}

impl Acks {
    /// Sends acks until every [`Held`] of the channel is gone, or the channel is.
    pub async fn run(mut self) {
        let mut window = AckWindow::default();
        while let Some(event) = self.events.recv().await {
            note(&mut window, &event);
            while let Ok(event) = self.events.try_recv() {
                note(&mut window, &event);
            }
            for ack in window.take_acks() {
                if let Err(error) = self.settle.ack(ack).await {
                    tracing::debug!(%error, "could not ack; the broker will deliver again");
                    return;
                }
            }
        }
    }
}

fn note(window: &mut AckWindow, event: &Event) {
    match *event {
        Event::Delivered(tag) => window.deliver(tag),
        Event::Done(tag) => window.done(tag),
        Event::Settled(tag) => window.forget(tag),
    }
}

/// The batches in this worker's hands, for its presence. One batch may be held twice: a redelivery
/// arrived while the first delivery's connection was being given up.
#[derive(Debug, Clone, Default)]
pub struct Holding(Arc<Mutex<HashMap<BatchId, usize>>>);

impl Holding {
    /// Holds a batch for as long as the answer lives.
    #[must_use]
    pub fn hold(&self, batch: BatchId) -> HoldGuard {
        *self.lock().entry(batch).or_default() += 1;
        HoldGuard {
            holding: self.clone(),
            batch,
        }
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> Vec<BatchId> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BatchId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a [`Holding::hold`].
#[derive(Debug)]
pub struct HoldGuard {
    holding: Holding,
    batch: BatchId,
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        let mut held = self.holding.lock();
        if let Some(count) = held.get_mut(&self.batch) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.batch);
            }
        }
    }
}
