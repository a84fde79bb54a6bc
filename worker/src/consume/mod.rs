//! Consume: takes deliveries from the queues of this worker's pipelines and gives each a tracked task of
//! its own ([`batch`]). Messages that are no batch are refused ([`refuse`]).
//!
//! A *session* is one connection with its consumers. It ends when the broker breaks it, when the sink is
//! away for too long, when no coordinator gives leave for calls, or when the worker drains; then everything is
//! given back, and unless the worker drains the next session begins when it can work.

mod batch;
mod refuse;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll, select_all};
use futures::{FutureExt, StreamExt};
use lapin::Connection;
use lapin::message::Delivery;
use shared::backoff::Backoff;
use shared::batch::BatchIds;
use shared::broker::{BrokerError, Connector, PublishingPool};
use shared::id::BatchId;
use shared::name::{Lane, PipelineName};
use shared::topology::work_queue;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::claim::Claimant;
use crate::commit::Commit;
use crate::control::ControlListener;
use crate::held::Hands;
use crate::holding::Holding;
use crate::permits::CoordinatorPermits;
use crate::registry::Registry;

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
    /// Most unacked deliveries of one queue.
    pub prefetch: u16,
    /// One for each batch that runs.
    pub slots: Arc<Semaphore>,
    /// How many slots there are: a batch that runs alone takes them all.
    pub all_slots: u32,
    /// What is in this worker's hands.
    pub holding: Holding,
    /// Asks what to do with batches that were delivered before.
    pub claimant: Claimant,
    /// Asks for leave for calls.
    pub permits: Arc<CoordinatorPermits>,
    /// Hears which runs were cancelled.
    pub control: ControlListener,
    /// Finishes batches.
    pub commit: Commit,
    /// Nothing new is taken; what runs is finished.
    pub draining: CancellationToken,
    /// Nothing is finished any more.
    pub stopping: CancellationToken,
}

/// What comes from all queues, and through whose hands it goes.
type AllDeliveries =
    SelectAll<BoxStream<'static, ((Hands, PipelineName), Result<Delivery, BrokerError>)>>;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("the sink is away")]
    SinkAway,
    #[error("no coordinator gives leave for calls")]
    CoordinatorAway,
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
                    metrics::counter!("tidegate_sessions_lost_total").increment(1);
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
        let (mut deliveries, all_hands) = stage.open(session, connection).await?;
        let ended = loop {
            let next = tokio::select! {
                next = deliveries.next() => next,
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
                Some((_, Err(error))) => break Err(error.into()),
                None => break Err(BrokerError::Lost("no queue to consume from".into()).into()),
            }
        };
        stage.end(session, deliveries, all_hands, &ended).await;
        ended
    }

    /// Consumers of all queues that this worker serves.
    async fn open(
        &self,
        session: &Session,
        connection: &Connection,
    ) -> Result<(AllDeliveries, Vec<Hands>), BrokerError> {
        let (mut streams, mut all_hands) = (Vec::new(), Vec::new());
        for pipeline in self.registry.names() {
            for lane in Lane::all(self.lanes) {
                let queue = work_queue(pipeline, lane);
                let (deliveries, settle) = self
                    .connector
                    .subscribe(connection, &queue, self.prefetch)
                    .await?;
                let (hands, acks) = Hands::new(settle);
                session.tasks.spawn(acks.run());
                let ended =
                    BrokerError::Lost(format!("the broker cancelled the consumer of {queue}"));
                let ending = futures::stream::once(std::future::ready(Err(ended)));
                let source = (hands.clone(), pipeline.clone());
                streams.push(
                    deliveries
                        .chain(ending)
                        .map(move |delivery| (source.clone(), delivery))
                        .boxed(),
                );
                all_hands.push(hands);
            }
        }
        tracing::info!(
            queues = all_hands.len(),
            prefetch = self.prefetch,
            "consuming"
        );
        Ok((select_all(streams), all_hands))
    }

    /// Stops consuming first, so that what is given back goes to somebody else; then waits for the tasks.
    async fn end(
        &self,
        session: &Session,
        mut deliveries: AllDeliveries,
        all_hands: Vec<Hands>,
        ended: &Result<(), SessionError>,
    ) {
        match ended {
            Err(SessionError::Broker(_)) => {
                // What had arrived and was not started: the broker takes it back by itself.
                while let Some(Some((_, delivery))) = deliveries.next().now_or_never() {
                    self.holding.note_returned(delivery.iter().filter_map(id));
                }
                drop(deliveries);
                session.over.cancel();
            }
            Ok(()) | Err(SessionError::SinkAway | SessionError::CoordinatorAway) => {
                let giving_back = self.give_back_unstarted(deliveries, &all_hands, &session.closed);
                let given_back = timeout(self.connector.answer_timeout(), giving_back).await;
                session.closed.cancel();
                if given_back.is_err() {
                    tracing::warn!(
                        "the broker does not take work back; it will when the connection ends"
                    );
                }
            }
        }
        drop(all_hands);
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

    /// A cancelled consumer yields what was buffered, then ends: all of it goes back, after it was said.
    async fn give_back_unstarted(
        &self,
        deliveries: AllDeliveries,
        all_hands: &[Hands],
        closed: &CancellationToken,
    ) {
        for hands in all_hands {
            if let Err(error) = hands.stop().await {
                tracing::debug!(%error, "could not stop a consumer; its connection ends anyway");
            }
        }
        closed.cancel();
        let unstarted: Vec<(Hands, Delivery)> = deliveries
            .filter_map(async |((hands, _), delivery)| Some((hands, delivery.ok()?)))
            .collect()
            .await;
        let batches = unstarted.iter().filter_map(|(_, delivery)| id(delivery));
        self.holding.announce(batches).await;
        for (hands, delivery) in unstarted {
            hands.take(delivery.delivery_tag).give_back().await;
        }
    }

    async fn wait_until_able(&self, error: &SessionError, failures: u32) {
        let pause = tokio::time::sleep(Backoff::RECONNECT.draw(failures));
        tokio::select! {
            () = pause => {}
            () = self.draining.cancelled() => return,
        }
        let able = async {
            match error {
                SessionError::Broker(_) => {}
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
