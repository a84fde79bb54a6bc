//! Consume: takes deliveries from the queues of this worker's pipelines and gives each a tracked task of
//! its own: decode, wait for a slot, [`process`](crate::process), [`commit`](crate::commit).
//!
//! A *session* is one connection with its consumers. It ends when the broker breaks it, when the sink is
//! away for too long, or when the worker drains; then everything is given back, and unless the worker
//! drains the next session begins when it can work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::select_all;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use shared::backoff::Backoff;
use shared::batch::{Batch, BatchIds, DecodeError};
use shared::broker::{BrokerError, Connector, Message, PublishingPool, Verdict};
use shared::id::BatchId;
use shared::name::{Key, Lane, PipelineName};
use shared::outcome::Outcome;
use shared::topology::{DEAD, HEADER_ERROR, HEADER_REASON, work_queue};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::commit::{Commit, SinkAway, Work};
use crate::held::{Hands, Held, Holding};
use crate::process::{Processed, process};
use crate::registry::{Registry, Served};

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
    /// How many batches run at once.
    pub slots: Arc<Semaphore>,
    /// What is in this worker's hands.
    pub holding: Holding,
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
    #[error("the sink is away")]
    SinkAway,
}

/// One session's hold on its tasks.
struct Session {
    tasks: TaskTracker,
    /// Nobody wants the results of what runs: the connection is gone, or there is no sink to put them.
    over: CancellationToken,
    /// The sink was found away.
    sink_away: CancellationToken,
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
        let session = Arc::new(Session {
            tasks: TaskTracker::new(),
            over: stage.stopping.child_token(),
            sink_away: CancellationToken::new(),
            closed: CancellationToken::new(),
        });
        let (mut streams, mut all_hands) = (Vec::new(), Vec::new());
        for pipeline in stage.registry.names() {
            for lane in Lane::all(stage.lanes) {
                let queue = work_queue(pipeline, lane);
                let (deliveries, settle) = stage
                    .connector
                    .subscribe(&connection, &queue, stage.prefetch)
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
            prefetch = stage.prefetch,
            "consuming"
        );
        let mut deliveries = select_all(streams);
        let ended = loop {
            let next = tokio::select! {
                next = deliveries.next() => next,
                () = stage.draining.cancelled() => break Ok(()),
                () = session.sink_away.cancelled() => break Err(SessionError::SinkAway),
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
        stage.end(&session, deliveries, all_hands, &ended).await;
        stage.connector.goodbye(connection).await;
        ended
    }

    /// Stops consuming first, so that what is given back goes to somebody else; then waits for the tasks.
    async fn end<S>(
        &self,
        session: &Session,
        deliveries: S,
        all_hands: Vec<Hands>,
        ended: &Result<(), SessionError>,
    ) where
        S: futures::Stream<Item = ((Hands, PipelineName), Result<Delivery, BrokerError>)> + Unpin,
    {
        match ended {
            Err(SessionError::Broker(_)) => {
                drop(deliveries);
                session.over.cancel();
            }
            Ok(()) | Err(SessionError::SinkAway) => {
                let giving_back = give_back_unstarted(deliveries, &all_hands, &session.closed);
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

    /// One batch, from delivery to ack.
    async fn work(
        self: Arc<Self>,
        session: Arc<Session>,
        pipeline: PipelineName,
        held: Held,
        delivery: Delivery,
    ) {
        let redelivered = delivery.redelivered;
        let batch = match Batch::decode(&delivery.properties, &delivery.data) {
            Ok(batch) => batch,
            Err(error) => return self.refuse(held, delivery, &pipeline, error).await,
        };
        drop(delivery);
        let _holding = self.holding.hold(batch.id);
        shared::failpoint::reach("w.delivered");
        if redelivered {
            tracing::info!(batch.id = %batch.id, attempt = %batch.attempt, key = %batch.key, "took over a batch that somebody else had");
            metrics::counter!("tidegate_redelivered_total").increment(1);
        }
        let Some(served) = self.registry.get(&batch.pipeline) else {
            let reason = "unknown_pipeline".to_owned();
            return self
                .commit
                .report(
                    Work {
                        held,
                        batch,
                        redelivered,
                        took: None,
                    },
                    Outcome::Released { reason },
                )
                .await;
        };
        let patience = CONSUMER_TIMEOUT.saturating_sub(served.deadline + CONSUMER_TIMEOUT_MARGIN);
        let slot = tokio::select! {
            biased;
            () = session.closed.cancelled() => return held.give_back().await,
            () = session.over.cancelled() => return held.give_back().await,
            // The draining worker starts nothing, but gives back only once its queues are closed.
            slot = self.slots.acquire(), if !self.draining.is_cancelled() => {
                slot.expect("the slots are never closed")
            }
            () = tokio::time::sleep(patience) => {
                tracing::warn!(batch.id = %batch.id, "waited too long for a slot, giving the batch back");
                return held.give_back().await;
            }
        };
        if self.draining.is_cancelled() {
            drop(slot);
            session.closed.cancelled().await;
            return held.give_back().await;
        }
        let work = Work {
            held,
            batch,
            redelivered,
            took: None,
        };
        if let Err(error) = self.run_and_finish(&session, served, work, slot).await {
            tracing::error!(%error, "giving work back until the sink answers");
            session.sink_away.cancel();
        }
    }

    async fn run_and_finish(
        &self,
        session: &Session,
        served: &Served,
        mut work: Work,
        slot: SemaphorePermit<'_>,
    ) -> Result<(), SinkAway> {
        // A batch that was delivered or tried before may be done already: then its outcome is reported again.
        if served.sink && (work.redelivered || work.batch.attempt.number() > 1) {
            match self.commit.find(&work.batch).await {
                Ok(None) => {}
                Ok(Some(outcome)) => {
                    drop(slot);
                    self.commit.report(work, outcome).await;
                    return Ok(());
                }
                Err(away) => {
                    work.held.give_back().await;
                    return Err(away);
                }
            }
        }
        let started = Instant::now();
        let processed = process(served, work.batch.clone(), &session.over).await;
        work.took = Some(started.elapsed());
        shared::failpoint::reach("w.handler.done");
        match processed {
            Processed::Ended(ended) => self.commit.finish(work, ended, served.sink, slot).await,
            Processed::Stopped => {
                work.held.give_back().await;
                Ok(())
            }
        }
    }

    /// A message that is no batch for this worker.
    async fn refuse(
        &self,
        held: Held,
        delivery: Delivery,
        pipeline: &PipelineName,
        error: DecodeError,
    ) {
        tracing::error!(%error, reason = error.reason(), %pipeline, "a message on a work queue cannot be run");
        metrics::counter!("tidegate_undecodable_total", "reason" => error.reason()).increment(1);
        if let DecodeError::OtherVersion {
            ids: BatchIds { id, run, attempt },
            ..
        } = error
        {
            let payload = serde_json::value::RawValue::NULL.to_owned();
            let batch = Batch {
                id,
                run,
                pipeline: pipeline.clone(),
                key: Key::default(),
                attempt,
                payload,
            };
            let reason = "unsupported_version".to_owned();
            let work = Work {
                held,
                batch,
                redelivered: delivery.redelivered,
                took: None,
            };
            return self.commit.report(work, Outcome::Released { reason }).await;
        }
        match self.send_to_dead(delivery, &error).await {
            Ok(()) => held.ack(),
            Err(problem) => {
                tracing::warn!(error = %problem, "could not send a message to tidegate.dead, rejecting it");
                held.reject().await;
            }
        }
    }

    async fn send_to_dead(
        &self,
        delivery: Delivery,
        error: &DecodeError,
    ) -> Result<(), BrokerError> {
        let mut headers = delivery.properties.headers().clone().unwrap_or_default();
        headers.insert(
            HEADER_REASON.into(),
            AMQPValue::LongString(error.reason().into()),
        );
        headers.insert(
            HEADER_ERROR.into(),
            AMQPValue::LongString(error.to_string().into()),
        );
        let mut properties = delivery
            .properties
            .with_headers(headers)
            .with_delivery_mode(2);
        if properties.message_id().is_none() {
            // A return is recognised by its message id.
            properties = properties.with_message_id(BatchId::generate().to_string().into());
        }
        let message = Message {
            exchange: DEAD,
            routing_key: String::new(),
            properties,
            body: delivery.data,
        };
        let verdicts = self.publishing.publisher().publish(&[message]).await?;
        match verdicts.as_slice() {
            [Verdict::Confirmed] => Ok(()),
            other => Err(BrokerError::Lost(format!(
                "tidegate.dead did not take a message: {other:?}"
            ))),
        }
    }

    async fn wait_until_able(&self, error: &SessionError, failures: u32) {
        let pause = tokio::time::sleep(Backoff::RECONNECT.draw(failures));
        tokio::select! {
            () = pause => {}
            () = self.draining.cancelled() => return,
        }
        if matches!(error, SessionError::SinkAway) {
            tokio::select! {
                () = self.commit.until_sink_answers() => tracing::info!("the sink answers again"),
                () = self.draining.cancelled() => {}
            }
        }
    }
}

/// A cancelled consumer yields what was buffered, then ends: all of it goes back.
async fn give_back_unstarted<S>(mut deliveries: S, all_hands: &[Hands], closed: &CancellationToken)
where
    S: futures::Stream<Item = ((Hands, PipelineName), Result<Delivery, BrokerError>)> + Unpin,
{
    for hands in all_hands {
        if let Err(error) = hands.stop().await {
            tracing::debug!(%error, "could not stop a consumer; its connection ends anyway");
        }
    }
    closed.cancel();
    while let Some(((hands, _), delivery)) = deliveries.next().await {
        if let Ok(delivery) = delivery {
            hands.take(delivery.delivery_tag).give_back().await;
        }
    }
}

/// How long RabbitMQ leaves a delivery unacked by default (`consumer_timeout`), counted from delivery.
const CONSUMER_TIMEOUT: Duration = Duration::from_mins(30);
/// Room for storing, reporting and RabbitMQ's own check, which runs once a minute.
const CONSUMER_TIMEOUT_MARGIN: Duration = Duration::from_mins(3);
/// How long tasks that were told to stop may take before they are left behind.
const LAST_WORDS: Duration = Duration::from_secs(4);
