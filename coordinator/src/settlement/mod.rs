//! Settlement: consumes outcomes and settles them in the ledger, in groups, before acking them.
//!
//! Whatever arrived since the previous group [began](Gathering) goes into the next one. Acks follow the
//! commit, so a crash in between brings the same outcomes again, and the ledger finds nothing to change.
//!
//! What cannot be settled never holds up the rest: a message with outcomes of batches that the ledger does
//! not know, or whose rows make no sense, is put aside whole, and its other outcomes are settled.

mod group;
mod storable;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::{SelectAll, select_all};
use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use lapin::message::Delivery;
use shared::backoff::Backoff;
use shared::broker::{AckWindow, BrokerError, Connector, PublishingPool, Settle};
use shared::config::PipelineConfig;
use shared::gather::Gathering;
use shared::name::{Instance, Lane, PipelineName};
use shared::outcome::{Completed, Outcome, Outcomes, Report};
use shared::signing::{BAD_SIGNATURE, Purpose};
use shared::topology::outcomes_queue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::consuming::{ConsumeError, Consumer, Failures};
use crate::ledger::transition::RetryPolicy;
use crate::ledger::{Effect, Judged, LedgerError, Ownership, Settled, SettlementLedger, Verdict};
use crate::notice::Notice;
use crate::quarantine;
use group::{Group, Stranger, UNDECODABLE};

/// Unacked outcome messages of a lane: of full ones, most of a group. They are in memory while the ledger is
/// away, a megabyte each, or one outcome with all that it asks for.
const PREFETCH: u16 = 32;
/// How often to look whether the ledger is ours again.
const UNSURE: Duration = Duration::from_millis(500);
/// Reason of a batch that asks for what cannot be.
const BAD_FOLLOW_UP: &str = "bad_follow_up";

/// The stage.
pub struct SettlementStage {
    /// Where outcomes are settled.
    pub ledger: Arc<dyn SettlementLedger>,
    /// Knows whether another coordinator may have the ledger by now.
    pub ownership: Arc<dyn Ownership>,
    /// How to reach the broker.
    pub connector: Connector,
    /// Where strangers are put aside.
    pub publishing: PublishingPool,
    /// How many outcome queues there are.
    pub lanes: u16,
    /// Retry policies.
    pub pipelines: BTreeMap<PipelineName, PipelineConfig>,
    /// Shows how far this has got.
    pub pulse: Arc<Mutex<Pulse>>,
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
    /// Ends the stage after the group at hand.
    pub draining: CancellationToken,
}

/// How far settlement has got.
#[derive(Debug)]
pub struct Pulse {
    /// Whether it waits, because everything that has arrived is settled.
    idle: bool,
    /// While it does not: everything that had arrived before then is settled.
    caught_up: Instant,
}

impl Pulse {
    /// Nothing is settled yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            idle: false,
            caught_up: now,
        }
    }

    /// Everything that had arrived before then is settled.
    #[must_use]
    pub fn caught_up(&self, now: Instant) -> Instant {
        if self.idle { now } else { self.caught_up }
    }
}

/// Ends a [`SettlementStage::rest`].
struct Resting<'a>(&'a SettlementStage);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.pulse().idle = false;
    }
}

/// A delivery, and the lane that it came from.
type Message = (usize, Delivery);

#[async_trait]
impl Consumer for SettlementStage {
    async fn consume(&mut self, failures: &mut Failures) -> Result<(), ConsumeError> {
        // Who may not be the owner any more takes nothing away from the one who is.
        while !self.ownership.is_sure() {
            tokio::select! {
                () = tokio::time::sleep(UNSURE) => {}
                () = self.draining.cancelled() => return Ok(()),
            }
        }
        let Some(connection) = self.connector.reconnect("outcomes", &self.draining).await else {
            return Ok(());
        };
        let (mut lanes, mut streams) = (Vec::new(), Vec::new());
        for (index, lane) in Lane::all(self.lanes).enumerate() {
            let (deliveries, settle) = self
                .connector
                .subscribe(&connection, &outcomes_queue(lane), PREFETCH)
                .await?;
            let ended =
                BrokerError::Lost(format!("the consumer of {} was cancelled", settle.queue()));
            // A stream that ends is a fault: say so, instead of letting the others hide it.
            let ending = futures::stream::once(std::future::ready(Err(ended)));
            streams.push(
                deliveries
                    .chain(ending)
                    .map(move |delivery| delivery.map(|delivery| (index, delivery)))
                    .boxed(),
            );
            lanes.push(settle);
        }
        let mut deliveries = select_all(streams);
        let mut gathering = Gathering::new();
        loop {
            let first = if let Some(first) = deliveries.next().now_or_never() {
                first
            } else {
                let _resting = self.rest();
                tokio::select! {
                    first = deliveries.next() => first,
                    () = self.draining.cancelled() => return Ok(()),
                }
            };
            let Some(first) = first else {
                return Err(BrokerError::Lost("no lane is left".into()).into());
            };
            let mut group = Group::default();
            gathering.gathered().await;
            self.read(first?, &mut group);
            self.read_arrived(&mut deliveries, &mut group)?;
            gathering.had_company(group.outcomes.len()).await;
            self.read_arrived(&mut deliveries, &mut group)?;
            gathering.begin();
            self.settle_group(group, &lanes).await?;
            failures.forget();
        }
    }
}

impl SettlementStage {
    /// Says that nothing is left to settle, for as long as the answer lives.
    fn rest(&self) -> Resting<'_> {
        *self.pulse() = Pulse {
            idle: true,
            caught_up: Instant::now(),
        };
        Resting(self)
    }

    fn pulse(&self) -> std::sync::MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds everything that is already here, up to a full group.
    fn read_arrived<S>(
        &self,
        deliveries: &mut SelectAll<S>,
        group: &mut Group<Message>,
    ) -> Result<(), BrokerError>
    where
        S: Stream<Item = Result<Message, BrokerError>> + Unpin,
    {
        while !group.is_full()
            && let Some(Some(message)) = deliveries.next().now_or_never()
        {
            self.read(message?, group);
        }
        Ok(())
    }

    /// Settles a group, then acks it: strangers last, because putting them aside takes a broker that lets us publish.
    async fn settle_group(
        &self,
        group: Group<Message>,
        lanes: &[Settle],
    ) -> Result<(), ConsumeError> {
        let mut unacked: Vec<AckWindow> = lanes.iter().map(|_| AckWindow::default()).collect();
        for (lane, delivery) in &group.messages {
            unacked[*lane].deliver(delivery.delivery_tag);
        }
        shared::failpoint::reach("c.outcome.received");
        let started = Instant::now();
        let (settled, given_up) = self.settle(&group.outcomes).await;
        if let Some(error) = given_up {
            // What is not acked is delivered again, to whoever is the owner then.
            let settled = settled.into_iter().flatten().collect();
            let _ = self.notices.send(Notice::Settled(settled)).await;
            return Err(error.into());
        }
        shared::failpoint::reach("c.outcome.committed");
        if !group.is_full() {
            self.pulse().caught_up = started;
        }
        metrics::histogram!("tidegate_settle_seconds").record(started.elapsed());
        metrics::histogram!("tidegate_settle_group_outcomes")
            .record(crate::metrics::size(group.outcomes.len()));
        let (done, strangers) = group.sort(&settled);
        let settled = settled.into_iter().flatten().collect();
        // Before the acks: if those fail, the same outcomes come again and are duplicates, which tell the
        // dispatcher nothing. It ends before this stage only while draining, and then needs no news.
        let _ = self.notices.send(Notice::Settled(settled)).await;
        for (lane, delivery) in done {
            unacked[*lane].done(delivery.delivery_tag);
        }
        ack(lanes, &mut unacked).await?;
        shared::failpoint::reach("c.outcome.acked");
        for stranger in strangers {
            self.put_aside(&stranger).await?;
            let (lane, delivery) = stranger.message;
            unacked[*lane].done(delivery.delivery_tag);
            ack(lanes, &mut unacked).await?;
        }
        Ok(())
    }

    /// Adds a message's outcomes to the group.
    fn read(&self, message: Message, group: &mut Group<Message>) {
        let delivery = &message.1;
        let bytes = delivery.data.len();
        if let Err(error) = self.connector.check(Purpose::Outcomes, delivery) {
            return group.add_stranger(message, bytes, BAD_SIGNATURE, error.to_string());
        }
        match Outcomes::decode(&delivery.properties, &delivery.data) {
            Ok(outcomes) => {
                let redelivered = outcomes
                    .reports
                    .iter()
                    .filter(|report| report.redelivered)
                    .count();
                metrics::counter!("tidegate_redelivered_outcomes_total")
                    .increment(redelivered as u64);
                let worker = &outcomes.worker;
                let judged = outcomes
                    .reports
                    .into_iter()
                    .map(|report| self.judge(worker, report));
                group.add(message, bytes, judged);
            }
            Err(error) => {
                group.add_stranger(message, bytes, UNDECODABLE, error.to_string());
            }
        }
    }

    async fn put_aside(&self, stranger: &Stranger<'_, Message>) -> Result<(), BrokerError> {
        let Stranger {
            message,
            reason,
            error,
        } = stranger;
        tracing::error!(
            reason,
            error,
            "outcomes cannot be settled, their message is put aside in tidegate.quarantine"
        );
        metrics::counter!("tidegate_strange_outcomes_total", "reason" => *reason).increment(1);
        quarantine::put_aside(&self.publishing, &message.1, reason, error).await
    }

    /// Settles until the ledger has it: an outcome is never acked before. Of what failed the first half is tried
    /// next, which is quick to try while the ledger is away, finds the outcomes whose rows in the ledger make
    /// no sense (only they fail), and ends with something that the ledger can do in time. Gives up, with the
    /// reason, and with what is settled until then, when the ledger may be another coordinator's.
    async fn settle(
        &self,
        group: &[Judged],
    ) -> (Vec<Result<Settled, LedgerError>>, Option<LedgerError>) {
        let mut settled = Vec::with_capacity(group.len());
        let (mut todo, mut failures) = (vec![group], 0);
        while let Some(part) = todo.pop() {
            let error = match self.ledger.settle(part, Timestamp::now()).await {
                Ok(done) => {
                    count(&done);
                    settled.extend(done.into_iter().map(Ok));
                    failures = 0;
                    continue;
                }
                Err(error) => error,
            };
            let is_damaged = matches!(error, LedgerError::Damaged { .. });
            if !is_damaged {
                if !self.ownership.is_sure() {
                    return (settled, Some(error));
                }
                failures += 1;
                tracing::error!(%error, outcomes = part.len(), "cannot settle, trying again");
                tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await;
            }
            match part.split_at(part.len() / 2) {
                ([], _) if is_damaged => settled.push(Err(error)),
                ([], one) => todo.push(one),
                (first, second) => todo.extend([second, first]),
            }
        }
        (settled, None)
    }

    /// What should become of the batch, by its pipeline's policy, in words that any ledger can store.
    #[must_use]
    pub fn judge(&self, worker: &Instance, report: Report) -> Judged {
        let verdict = match report.outcome {
            Outcome::Completed(completed) => self.complete(completed),
            Outcome::Retry { error, after_ms } => Verdict::Retry {
                error: storable::text(&error),
                after: after_ms,
                policy: self.policy(&report.pipeline),
                random: rand::random(),
            },
            Outcome::Throttled { reason, after_ms } => Verdict::Hold {
                reason: storable::text(&reason),
                after: after_ms,
            },
            Outcome::Failed { reason, error } => Verdict::Kill {
                reason: storable::text(&reason),
                error: storable::text(&error),
            },
            Outcome::Released { reason } => Verdict::Release {
                reason: storable::text(&reason),
            },
        };
        Judged {
            batch: report.batch,
            attempt: report.attempt,
            worker: Some(storable::worker(worker)),
            took: report.took,
            verdict,
        }
    }

    /// Done, unless it asks for what nobody can do: then it is dead until the pipelines are configured and
    /// it is redriven, when its stored outcome is reported again.
    fn complete(&self, completed: Completed) -> Verdict {
        let unknown = completed
            .follow_ups
            .iter()
            .find(|follow_up| !self.pipelines.contains_key(&follow_up.pipeline));
        if let Some(follow_up) = unknown {
            return Verdict::Kill {
                reason: BAD_FOLLOW_UP.to_owned(),
                error: format!(
                    "asks for a follow-up of the pipeline {}, which is not configured: configure it, then redrive",
                    follow_up.pipeline
                ),
            };
        }
        if let Err(error) = storable::check(&completed.follow_ups) {
            return Verdict::Kill {
                reason: BAD_FOLLOW_UP.to_owned(),
                error: format!("asks for a follow-up that cannot be: {error}"),
            };
        }
        Verdict::Complete {
            rows: storable::count(completed.rows),
            statistics: storable::statistics(completed.statistics),
            follow_ups: completed.follow_ups,
        }
    }

    fn policy(&self, pipeline: &PipelineName) -> RetryPolicy {
        let policy = |config: &PipelineConfig| RetryPolicy {
            max_attempts: config.max_attempts,
            backoff: config.backoff(),
        };
        self.pipelines
            .get(pipeline)
            .map_or_else(|| policy(&PipelineConfig::default()), policy)
    }
}

/// Acks what is done.
async fn ack(lanes: &[Settle], unacked: &mut [AckWindow]) -> Result<(), BrokerError> {
    for (lane, unacked) in lanes.iter().zip(unacked) {
        for ack in unacked.take_acks() {
            lane.ack(ack).await?;
        }
    }
    Ok(())
}

fn count(settled: &[Settled]) {
    let mut effects: BTreeMap<&'static str, u64> = BTreeMap::new();
    for settled in settled {
        let effect = match settled.effect {
            Effect::Completed => "completed",
            Effect::CompletedLate => "completed_late",
            Effect::Again => "again",
            Effect::Dead => "dead",
            Effect::Cancelled => "cancelled",
            Effect::Duplicate => "duplicate",
            Effect::Stale => "stale",
            Effect::Unknown => "unknown",
        };
        *effects.entry(effect).or_default() += 1;
    }
    for (effect, count) in effects {
        metrics::counter!("tidegate_settled_total", "effect" => effect).increment(count);
    }
}

#[cfg(test)]
mod tests;
