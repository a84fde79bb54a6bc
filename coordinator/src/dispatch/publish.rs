//! Publishes waves of one pipeline's batches, one after the other, on a confirming channel of its own. So a
//! pipeline whose queue refuses or does not answer waits alone.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use shared::backoff::Backoff;
use shared::batch::Batch;
use shared::broker::{BrokerError, Message, Publisher, PublishingPool, Verdict};
use shared::id::BatchId;
use shared::name::{Attempt, PipelineName};
use shared::topology;
use tokio::sync::mpsc;

use super::dispatcher::Dispatch;
use super::hearing::Answer;
use crate::ledger::{DispatchLedger, LedgerError, PendingBatch};
use crate::topology::Topology;

/// Most payload bytes that a pipeline publishes as one group: what is read from the ledger at once stays bounded.
const WAVE_BYTES: usize = 4 * 1024 * 1024;

pub(super) struct Publishing {
    pub(super) pipeline: PipelineName,
    pub(super) ledger: Arc<dyn DispatchLedger>,
    pub(super) pool: PublishingPool,
    pub(super) topology: Topology,
    pub(super) lanes: u16,
    pub(super) waves: mpsc::Receiver<Vec<Dispatch>>,
    pub(super) confirmed: mpsc::Sender<Vec<(BatchId, Attempt)>>,
    pub(super) answers: mpsc::Sender<Answer>,
}

/// Why a group, or a part of it, was not published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(
        "{nacked} messages refused by a full or unavailable queue, {unroutable} found no queue"
    )]
    Refused { nacked: usize, unroutable: usize },
}

/// Runs until there are no more waves.
pub(super) async fn run(mut stage: Publishing) {
    let mut publisher = stage.pool.publisher();
    let mut failures = 0;
    while let Some(wave) = stage.waves.recv().await {
        // The next wave can be made while this one is published. The receiver is gone only when the stage is.
        let _ = stage.answers.send(Answer::Room).await;
        for group in by_bytes(wave) {
            let (left, result) = stage.publish(&mut publisher, group).await;
            match result {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, pipeline = %stage.pipeline, batches = left.len(), "could not publish, trying again");
                    metrics::counter!("tidegate_publish_failures_total").increment(1);
                    let _ = stage.answers.send(Answer::Returned(left)).await;
                    stage.mend(&error).await;
                    tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await;
                }
            }
        }
    }
}

impl Publishing {
    /// Publishes a group and passes on what was confirmed. Gives back what was not.
    async fn publish(
        &self,
        publisher: &mut Publisher,
        group: Vec<Dispatch>,
    ) -> (Vec<Dispatch>, Result<(), PublishError>) {
        let (group, messages) = match self.messages(&group).await {
            Ok(messages) => self.only_waiting(group, messages).await,
            Err(error) => return (group, Err(error.into())),
        };
        if messages.is_empty() {
            return (group, Ok(()));
        }
        shared::failpoint::reach("c.publish.read");
        let started = Instant::now();
        let verdicts = match publisher.publish(&messages).await {
            Ok(verdicts) => verdicts,
            Err(error) => return (group, Err(error.into())),
        };
        shared::failpoint::reach("c.confirm.received");
        metrics::histogram!("tidegate_publish_seconds").record(started.elapsed());
        metrics::histogram!("tidegate_publish_group_batches")
            .record(crate::metrics::size(messages.len()));
        let (mut confirmed, mut left) = (Vec::with_capacity(group.len()), Vec::new());
        let (mut nacked, mut unroutable) = (0, 0);
        for (dispatch, verdict) in group.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Confirmed => {
                    confirmed.push((dispatch.batch.id, dispatch.batch.attempt.next()));
                    continue;
                }
                Verdict::Nacked => nacked += 1,
                Verdict::Unroutable => unroutable += 1,
            }
            left.push(dispatch);
        }
        metrics::counter!("tidegate_published_total").increment(confirmed.len() as u64);
        // The recording task ends after this one.
        let _ = self.confirmed.send(confirmed).await;
        let refused = Err(PublishError::Refused { nacked, unroutable });
        if left.is_empty() {
            (left, Ok(()))
        } else {
            (left, refused)
        }
    }

    /// The messages; `None` for a batch that does not wait for this attempt any more.
    async fn messages(&self, group: &[Dispatch]) -> Result<Vec<Option<Message>>, LedgerError> {
        let batches: Vec<&PendingBatch> = group.iter().map(|dispatch| &dispatch.batch).collect();
        let payloads = self.ledger.payloads(&batches).await?;
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        let message = |(dispatch, payload): (&Dispatch, Option<_>)| {
            let backlog = &dispatch.backlog;
            let batch = Batch {
                id: dispatch.batch.id,
                run: backlog.run,
                pipeline: backlog.pipeline.clone(),
                key: backlog.key.clone(),
                attempt: dispatch.batch.attempt.next(),
                payload: payload?,
            };
            Some(Message {
                exchange: topology::WORK,
                routing_key: topology::work_routing_key(
                    &batch.pipeline,
                    batch.key.lane(self.lanes),
                ),
                properties: batch.properties(now),
                body: String::from(Box::<str>::from(batch.payload)).into_bytes(),
            })
        };
        Ok(group.iter().zip(payloads).map(message).collect())
    }

    /// Parts with the batches that were settled since they were read: after a crash, or when a publish that
    /// was taken for failed had worked.
    async fn only_waiting(
        &self,
        group: Vec<Dispatch>,
        messages: Vec<Option<Message>>,
    ) -> (Vec<Dispatch>, Vec<Message>) {
        let (mut waiting, mut kept, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (dispatch, message) in group.into_iter().zip(messages) {
            match message {
                Some(message) => {
                    waiting.push(dispatch);
                    kept.push(message);
                }
                None => gone.push(dispatch),
            }
        }
        if !gone.is_empty() {
            let _ = self.answers.send(Answer::Returned(gone)).await;
        }
        (waiting, kept)
    }

    /// A message that found no queue: somebody deleted one, or the broker lost everything.
    async fn mend(&self, error: &PublishError) {
        let missing = matches!(
            error,
            PublishError::Refused {
                unroutable: 1..,
                ..
            } | PublishError::Broker(BrokerError::Missing { .. })
        );
        if missing && let Err(error) = self.topology.ensure().await {
            tracing::error!(%error, "the topology is incomplete and cannot be mended");
        }
    }
}

/// Cuts a wave where its payloads would need too much memory at once.
fn by_bytes(wave: Vec<Dispatch>) -> Vec<Vec<Dispatch>> {
    let mut groups: Vec<Vec<Dispatch>> = Vec::new();
    let mut bytes = 0;
    for dispatch in wave {
        let size = dispatch.batch.bytes as usize;
        match groups.last_mut() {
            Some(group) if bytes + size <= WAVE_BYTES => {
                bytes += size;
                group.push(dispatch);
            }
            _ => {
                bytes = size;
                groups.push(vec![dispatch]);
            }
        }
    }
    groups
}
