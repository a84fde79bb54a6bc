//! A delivery in this worker's hands. It can be settled with the broker once, by value; acks of many are
//! sent together by [`Acks`], which never covers one that is still being worked on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use shared::broker::{AckWindow, BrokerError, Settle};
use shared::id::BatchId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::holding::{HoldGuard, Holding};

/// So long after the last delivery none is on its way any more.
const QUIET: Duration = Duration::from_millis(200);
/// Where deliveries never pause for that long, a consumer is stopped after this all the same.
const LONGEST_FILLING: Duration = Duration::from_secs(2);

/// A delivery that is neither acked nor given back. Dropping it settles nothing: the broker hands it out
/// again when the connection ends.
#[derive(Debug)]
pub struct Held {
    tag: u64,
    /// The batch that it delivers, once that is known.
    hold: Option<HoldGuard>,
    counted: Counted,
}

/// Which acks are due on one channel.
#[derive(Debug)]
pub struct Acks {
    settle: Settle,
    prefetch: usize,
    events: mpsc::UnboundedReceiver<Event>,
}

#[derive(Debug)]
enum Event {
    Delivered(u64),
    Done(u64),
    Settled(u64),
    /// Nothing new is wanted; to be dropped when nothing new comes.
    Stop(oneshot::Sender<()>),
}

/// How deliveries were settled, for the report at the end; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Settled>);

/// Counts of deliveries.
#[derive(Debug, Default)]
pub struct Settled {
    finished: AtomicU64,
    given_back: AtomicU64,
}

impl Tally {
    /// Deliveries that were acked, and that were given back, so far.
    #[must_use]
    pub fn finished_and_given_back(&self) -> (u64, u64) {
        let Settled {
            finished,
            given_back,
        } = &*self.0;
        (
            finished.load(Ordering::Relaxed),
            given_back.load(Ordering::Relaxed),
        )
    }
}

/// Makes [`Held`]s for one channel. Bounded by the channel's prefetch, like everything about deliveries.
#[derive(Debug, Clone)]
pub struct Hands(Arc<OneChannel>);

/// What all that is held of one channel shares: every delivery would otherwise copy it.
#[derive(Debug)]
struct OneChannel {
    settle: Settle,
    acks: mpsc::UnboundedSender<Event>,
    held: AtomicUsize,
    tally: Tally,
}

/// Counts one [`Held`] for as long as it lives.
#[derive(Debug)]
struct Counted(Arc<OneChannel>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hands {
    /// For this channel, which may have so many deliveries unacked; [`Acks::run`] has to run beside.
    #[must_use]
    pub fn new(settle: Settle, prefetch: u16, tally: Tally) -> (Self, Acks) {
        let (acks, events) = mpsc::unbounded_channel();
        let channel = OneChannel {
            settle: settle.clone(),
            acks,
            held: AtomicUsize::new(0),
            tally,
        };
        let acks = Acks {
            settle,
            prefetch: prefetch.into(),
            events,
        };
        (Self(Arc::new(channel)), acks)
    }

    /// Takes a delivery, in the order of delivery.
    #[must_use]
    pub fn take(&self, tag: u64) -> Held {
        self.0.tell(Event::Delivered(tag));
        self.0.held.fetch_add(1, Ordering::Relaxed);
        Held {
            tag,
            hold: None,
            counted: Counted(self.0.clone()),
        }
    }

    /// How many deliveries of this channel are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Stops new deliveries soon; the future tells when. What comes until then has to be taken meanwhile.
    pub fn stop(&self) -> impl Future<Output = ()> + use<> {
        let (stopped, told) = oneshot::channel();
        self.0.tell(Event::Stop(stopped));
        async {
            // Nothing is ever sent: the end of the channel is the news.
            let _ = told.await;
        }
    }
}

impl OneChannel {
    /// The receiver is gone only when the channel is; then nothing can be acked anyway.
    fn tell(&self, event: Event) {
        let _ = self.acks.send(event);
    }
}

impl Held {
    /// It delivers this batch, which this worker has until the delivery is settled.
    #[must_use]
    pub fn of(self, batch: BatchId, holding: &Holding) -> Self {
        Self {
            hold: Some(holding.hold(batch)),
            ..self
        }
    }

    /// Its outcome is safe with the broker: the delivery may go.
    pub fn ack(self) {
        let channel = &self.counted.0;
        channel.tally.0.finished.fetch_add(1, Ordering::Relaxed);
        channel.tell(Event::Done(self.tag));
    }

    /// Somebody else should do it, at once, and need not be afraid of it.
    pub async fn give_back(self) {
        // Seldom done, and so no part of every batch's task.
        Box::pin(self.hand_back()).await;
    }

    async fn hand_back(self) {
        let channel = &self.counted.0;
        if let Some(hold) = &self.hold {
            hold.give_back(channel.settle.is_open()).await;
        }
        metrics::counter!("tidegate_given_back_total").increment(1);
        channel.tally.0.given_back.fetch_add(1, Ordering::Relaxed);
        let given = channel.settle.nack(self.tag).await;
        self.settled(given);
    }

    /// Nobody can read it: the broker dead-letters it.
    pub async fn reject(self) {
        let rejected = self.counted.0.settle.reject(self.tag).await;
        self.settled(rejected);
    }

    /// A delivery that could not be settled stays open: no ack of others may cover it, and the broker takes
    /// it back with the channel.
    fn settled(self, result: Result<(), BrokerError>) {
        match result {
            Ok(()) => self.counted.0.tell(Event::Settled(self.tag)),
            Err(error) => tracing::debug!(%error, "could not give a delivery back"),
        }
    }
}

impl Acks {
    /// Sends acks until every [`Held`] of the channel is gone, or the channel is.
    pub async fn run(mut self) {
        let mut window = AckWindow::default();
        while let Some(event) = self.events.recv().await {
            let mut stop = note(&mut window, event);
            while let Ok(event) = self.events.try_recv() {
                stop = note(&mut window, event).or(stop);
            }
            if let Some(stopped) = stop {
                self.fill(&mut window).await;
                if let Err(error) = self.settle.cancel().await {
                    tracing::debug!(%error, "could not stop a consumer; its connection ends anyway");
                }
                drop(stopped);
            }
            for ack in window.take_acks() {
                if let Err(error) = self.settle.ack(ack).await {
                    tracing::debug!(%error, "could not ack; the broker will deliver again");
                    return;
                }
            }
        }
    }

    /// Waits until nothing is on its way, which without acks is so when all that may be unacked has come, or when
    /// nothing comes. What is on its way to a consumer that stops, RabbitMQ gives back itself, and counts it like a
    /// delivery to a worker that died (rabbitmq-server, issue 3729).
    async fn fill(&mut self, window: &mut AckWindow) {
        let latest = Instant::now() + LONGEST_FILLING;
        let mut end = Instant::now() + QUIET;
        while window.len() < self.prefetch {
            let Ok(Some(event)) = timeout_at(end.min(latest), self.events.recv()).await else {
                return;
            };
            if matches!(event, Event::Delivered(_)) {
                end = Instant::now() + QUIET;
            }
            note(window, event);
        }
    }
}

/// Gives back who wants to hear that the consumer has stopped.
fn note(window: &mut AckWindow, event: Event) -> Option<oneshot::Sender<()>> {
    match event {
        Event::Delivered(tag) => window.deliver(tag),
        Event::Done(tag) => window.done(tag),
        Event::Settled(tag) => window.forget(tag),
        Event::Stop(stopped) => return Some(stopped),
    }
    None
}
