//! Consume: takes deliveries from the queues of this worker's pipelines and gives each a tracked task of
//! its own ([`batch`]). [`queues`] says how much is taken, [`refuse`] what becomes of messages that are no batch.
//!
//! A *session* is one connection with its consumers. It ends when the broker breaks it, when the sink is
//! away for too long, when no coordinator gives leave for calls, or when the worker drains; then everything is
//! given back, and unless the worker drains the next session begins when it can work.

mod batch;
mod queues;
mod refuse;

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::Connection;
use lapin::message::Delivery;
use shared::backoff::Backoff;
use shared::batch::BatchIds;
use shared::broker::{BrokerError, Connector, PublishingPool};
use shared::id::BatchId;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::claim::Claimant;
use crate::commit::Commit;
use crate::control::ControlListener;
use crate::cursor::Cursors;
use crate::health::{Readiness, Standing};
use crate::held::Tally;
use crate::holding::Holding;
use crate::pace::Pace;
use crate::permits::CoordinatorPermits;
use crate::registry::Registry;
use crate::slots::Slots;
use crate::threads::HandlerThreads;
use queues::Queues;

/// The stage.
pub struct ConsumeStage {
    /// How to reach the broker.
    pub connector: Connector,
    /// Where undecodable messages are sent on.
    pub publishing: PublishingPool,
    /// What this worker serves.
    pub registry: Registry,
    /// How many lanes there are.
    pub lanes: u16,
    /// How long the broker leaves a delivery unacked, counted from delivery.
    pub consumer_timeout: Duration,
    /// Says how many deliveries are held beyond the slots.
    pub pace: Pace,
    /// One for each batch that runs; one that runs alone takes them all.
    pub slots: Slots,
    /// What handlers run on.
    pub threads: HandlerThreads,
    /// What is in this worker's hands.
    pub holding: Holding,
    /// How deliveries were settled.
    pub tally: Tally,
    /// Asks what to do with batches that were delivered before.
    pub claimant: Claimant,
    /// Asks for leave for calls.
    pub permits: Arc<CoordinatorPermits>,
    /// Hears which runs were cancelled.
    pub control: ControlListener,
    /// Says whether batches come in.
    pub readiness: Readiness,
    /// How far unfinished batches came.
    pub cursors: Arc<dyn Cursors>,
    /// Finishes batches.
    pub commit: Commit,
    /// Nothing new is taken; what runs is finished.
    pub draining: CancellationToken,
    /// Nothing is finished any more.
    pub stopping: CancellationToken,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("the broker cancelled the consumer of {0}")]
    ConsumerCancelled(String),
    #[error("the sink is away")]
    SinkAway,
    #[error("no coordinator gives leave for calls")]
    CoordinatorAway,
}

impl SessionError {
    /// The same in one closed word, for counting.
    fn reason(&self) -> &'static str {
        match self {
            Self::Broker(_) => "broker",
            Self::ConsumerCancelled(_) => "consumer_cancelled",
            Self::SinkAway => "sink_away",
            Self::CoordinatorAway => "coordinator_away",
        }
    }

    /// What the worker waits for.
    fn standing(&self) -> Standing {
        match self {
            Self::Broker(_) | Self::ConsumerCancelled(_) => Standing::Connecting,
            Self::SinkAway => Standing::SinkAway,
            Self::CoordinatorAway => Standing::CoordinatorAway,
        }
    }
}

/// One session's hold on its tasks.
struct Session {
    tasks: TaskTracker,
    /// Nobody wants the results of what runs: the connection is gone, or there is no sink to put them.
    over: CancellationToken,
    /// The sink was found away.
    sink_away: CancellationToken,
    /// A call needed leave, and nobody was there to give it.
    coordinator_away: CancellationToken,
    /// No queue delivers any more, so what is given back goes to somebody else.
    closed: CancellationToken,
}

impl ConsumeStage {
    /// Runs until draining, whatever happens to broker and sink meanwhile.
    pub async fn run(self) -> Result<(), std::convert::Infallible> {
        let stage = Arc::new(self);
        let mut failures = 0;
        while !stage.draining.is_cancelled() {
            match Self::session(&stage, &mut failures).await {
                Ok(()) => break,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "stopped consuming");
                    metrics::counter!("tidegate_sessions_lost_total", "reason" => error.reason())
                        .increment(1);
                    stage.wait_until_able(&error, failures).await;
                }
            }
        }
        Ok(())
    }

    /// Consumes until the session ends. `Ok` when it ended because the worker drains.
    async fn session(stage: &Arc<Self>, failures: &mut u32) -> Result<(), SessionError> {
        let Some(connection) = stage.connector.reconnect("work", &stage.draining).await else {
            return Ok(());
        };
        // What the last session lost comes back now, perhaps to this worker: it is said first that it lives.
        stage.holding.announce([]).await;
        let session = Arc::new(Session {
            tasks: TaskTracker::new(),
            over: stage.stopping.child_token(),
            sink_away: CancellationToken::new(),
            coordinator_away: CancellationToken::new(),
            closed: CancellationToken::new(),
        });
        let ended = tokio::select! {
            never = stage.control.listen(&connection) => match never {},
            ended = Self::consume(stage, &session, &connection, failures) => ended,
        };
        stage.connector.goodbye(connection).await;
        ended
    }

    async fn consume(
        stage: &Arc<Self>,
        session: &Arc<Session>,
        connection: &Connection,
        failures: &mut u32,
    ) -> Result<(), SessionError> {
        let mut queues = stage.open(session, connection).await?;
        let mut tick = tokio::time::interval(queues::TICK);
        stage.readiness.set(Standing::Consuming);
        let ended = loop {
            let next = tokio::select! {
                next = queues.deliveries.next() => next,
                _ = tick.tick() => match stage.adapt(session, connection, &mut queues).await {
                    Ok(()) => continue,
                    Err(error) => break Err(error.into()),
                },
                () = stage.draining.cancelled() => break Ok(()),
                () = session.sink_away.cancelled() => break Err(SessionError::SinkAway),
                () = session.coordinator_away.cancelled() => break Err(SessionError::CoordinatorAway),
            };
            match next {
                Some(((hands, pipeline), Ok(delivery))) => {
                    *failures = 0;
                    let held = hands.take(delivery.delivery_tag);
                    let task = stage
                        .clone()
                        .work(session.clone(), pipeline, held, delivery);
                    session.tasks.spawn(task);
                }
                Some((_, Err(error))) => break Err(error),
                None => break Err(BrokerError::Lost("no queue to consume from".into()).into()),
            }
        };
        let standing = ended.as_ref().err();
        stage
            .readiness
            .set(standing.map_or(Standing::Draining, SessionError::standing));
        let before = stage.tally.finished_and_given_back();
        stage.end(session, queues, &ended).await;
        if ended.is_ok() {
            stage.tell_how_it_drained(before);
        }
        ended
    }

    /// Stops consuming first, so that what is given back goes to somebody else; then waits for the tasks.
    async fn end(&self, session: &Session, mut queues: Queues, ended: &Result<(), SessionError>) {
        match ended {
            Err(SessionError::Broker(_) | SessionError::ConsumerCancelled(_)) => {
                // What had arrived and was not started: the broker takes it back by itself.
                while let Some(Some((_, delivery))) = queues.deliveries.next().now_or_never() {
                    self.holding.note_returned(delivery.iter().filter_map(id));
                }
                drop(queues);
                session.over.cancel();
            }
            Ok(()) | Err(SessionError::SinkAway | SessionError::CoordinatorAway) => {
                let giving_back = self.give_back_unstarted(queues, &session.closed);
                let given_back = timeout(self.connector.answer_timeout(), giving_back).await;
                session.closed.cancel();
                if given_back.is_err() {
                    tracing::warn!(
                        "the broker does not take work back; it will when the connection ends"
                    );
                }
            }
        }
        if matches!(ended, Err(SessionError::SinkAway)) {
            session.over.cancel();
        }
        // Without a coordinator, what needs no leave for calls is finished all the same.
        session.tasks.close();
        let told_and_late = async {
            session.over.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = session.tasks.wait() => {}
            () = told_and_late => tracing::warn!("left tasks behind that do not end when told"),
        }
    }

    /// What nobody has started goes back, after it was said.
    async fn give_back_unstarted(&self, queues: Queues, closed: &CancellationToken) {
        let unstarted = queues.stop().await;
        closed.cancel();
        let batches = unstarted.iter().filter_map(|(_, delivery)| id(delivery));
        self.holding.announce(batches).await;
        for (held, _) in unstarted {
            held.give_back().await;
        }
    }

    fn tell_how_it_drained(&self, before: (u64, u64)) {
        let (finished, given_back) = self.tally.finished_and_given_back();
        tracing::info!(
            finished = finished - before.0,
            given_back = given_back - before.1,
            abandoned = self.threads.abandoned(),
            left = self.holding.list().len(),
            "drained"
        );
    }

    async fn wait_until_able(&self, error: &SessionError, failures: u32) {
        let pause = tokio::time::sleep(Backoff::RECONNECT.draw(failures));
        tokio::select! {
            () = pause => {}
            () = self.draining.cancelled() => return,
        }
        let able = async {
            match error {
                SessionError::Broker(_) | SessionError::ConsumerCancelled(_) => {}
                SessionError::SinkAway => {
                    self.commit.sinks.until_all_answer().await;
                    tracing::info!("the sink answers again");
                }
                SessionError::CoordinatorAway => {
                    for pipeline in self.registry.names().take(1) {
                        self.permits.until_answered(pipeline).await;
                    }
                    tracing::info!("a coordinator answers again");
                }
            }
        };
        tokio::select! {
            () = able => {}
            () = self.draining.cancelled() => {}
        }
    }
}

/// The batch of a delivery that nobody has looked at.
fn id(delivery: &Delivery) -> Option<BatchId> {
    let ids = BatchIds::decode(&delivery.properties);
    ids.ok().map(|ids| ids.id)
}

/// How long tasks that were told to stop may take before they are left behind.
const LAST_WORDS: Duration = Duration::from_secs(4);
