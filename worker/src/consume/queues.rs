//! The queues that a session consumes from, and how much of each it holds. How much is right changes with the
//! batches ([`pace`](crate::pace)); RabbitMQ takes a new prefetch only for a new consumer, so one that has to
//! change is replaced, rarely.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{join, join_all};
use futures::stream::{BoxStream, SelectAll};
use lapin::Connection;
use lapin::message::Delivery;
use shared::broker::BrokerError;
use shared::name::{Lane, PipelineName};
use shared::topology::work_queue;
use tokio_util::sync::CancellationToken;

use super::{ConsumeStage, Session, SessionError};
use crate::held::{Hands, Held};
use crate::pace::prefetch;

/// How often the prefetches are looked at. More are taken at once, fewer after a while.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// A queue that had nothing for so many ticks leaves its share of the slots to others.
const IDLE: u32 = 100;
/// For so many ticks fewer would have done before fewer are taken.
const TOO_MANY: u32 = 50;

/// Whose a delivery is, and through whose hands it goes.
type Source = (Hands, PipelineName);
/// A delivery, or why there are no more.
pub(super) type Next = (Source, Result<Delivery, SessionError>);

/// All of them.
pub(super) struct Queues {
    /// What comes from them.
    pub(super) deliveries: SelectAll<BoxStream<'static, Next>>,
    open: Vec<OpenQueue>,
    /// At the last look one of them could not deliver more.
    full: bool,
}

struct OpenQueue {
    pipeline: PipelineName,
    name: String,
    hands: Hands,
    prefetch: u16,
    /// Set when another consumer takes its place: its end is no loss then.
    replaced: CancellationToken,
    /// Ticks since it last had something.
    idle: u32,
    /// Ticks for which fewer would have done.
    too_many: u32,
}

impl Queues {
    /// Stops all of them; gives what they still delivered, and nobody has started.
    pub(super) async fn stop(self) -> Vec<(Held, Delivery)> {
        let stopped = join_all(self.open.iter().map(|queue| queue.hands.stop()));
        let unstarted = self.deliveries.filter_map(async |((hands, _), delivery)| {
            let delivery = delivery.ok()?;
            Some((hands.take(delivery.delivery_tag), delivery))
        });
        join(stopped, unstarted.collect()).await.1
    }

    /// Whether one of them may not deliver more, as when this was asked last.
    fn stays_full(&mut self) -> bool {
        let mut open = self.open.iter();
        let full = open.any(|queue| queue.hands.held() >= queue.prefetch.into());
        std::mem::replace(&mut self.full, full) && full
    }

    /// The queues that should have another prefetch, and which.
    fn due(&mut self, slots: u32, look_ahead: u32) -> Vec<(usize, u16)> {
        for queue in &mut self.open {
            queue.idle = match queue.hands.held() {
                0 => queue.idle.saturating_add(1),
                _ => 0,
            };
        }
        let shares = self.shares();
        let of_all = shares.values().sum();
        let mut due = Vec::new();
        for (index, queue) in self.open.iter_mut().enumerate() {
            let wanted = prefetch(slots, look_ahead, shares[&queue.pipeline], of_all);
            queue.too_many = if is_more(wanted, queue.prefetch) {
                queue.too_many + 1
            } else {
                0
            };
            if is_more(queue.prefetch, wanted) || queue.too_many > TOO_MANY {
                due.push((index, wanted));
            }
        }
        due
    }

    /// How many queues of each pipeline have work. Where none has, each may be the next.
    fn shares(&self) -> BTreeMap<PipelineName, u32> {
        let mut counts: BTreeMap<PipelineName, (u32, u32)> = BTreeMap::new();
        for queue in &self.open {
            let (with_work, all) = counts.entry(queue.pipeline.clone()).or_default();
            *with_work += u32::from(queue.idle < IDLE);
            *all += 1;
        }
        let share = |(with_work, all)| if with_work == 0 { all } else { with_work };
        let shares = counts.into_iter();
        shares.map(|(name, count)| (name, share(count))).collect()
    }
}

/// Whether the second is more than the first by so much that it is worth a new consumer.
fn is_more(one: u16, other: u16) -> bool {
    u32::from(other) * 4 > u32::from(one) * 5
}

impl ConsumeStage {
    /// Consumers of all queues that this worker serves.
    pub(super) async fn open(
        &self,
        session: &Session,
        connection: &Connection,
    ) -> Result<Queues, BrokerError> {
        let names = || self.registry.names();
        let lanes = u32::from(self.lanes);
        let of_all = lanes * u32::try_from(names().count()).unwrap_or(u32::MAX);
        let prefetch = prefetch(self.slots.count(), self.look_ahead(None), lanes, of_all);
        let mut queues = Queues {
            deliveries: SelectAll::new(),
            open: Vec::new(),
            full: false,
        };
        for pipeline in names() {
            for lane in Lane::all(self.lanes) {
                let name = work_queue(pipeline, lane);
                let source = (pipeline.clone(), name);
                let (deliveries, queue) = self
                    .open_queue(session, connection, source, prefetch)
                    .await?;
                queues.deliveries.push(deliveries);
                queues.open.push(queue);
            }
        }
        tracing::info!(queues = queues.open.len(), prefetch, "consuming");
        Ok(queues)
    }

    /// Replaces consumers whose prefetch is not right any more.
    pub(super) async fn adapt(
        &self,
        session: &Session,
        connection: &Connection,
        queues: &mut Queues,
    ) -> Result<(), BrokerError> {
        let idle = self.slots.idle_share();
        let look_ahead = self.look_ahead(queues.stays_full().then_some(idle));
        for (index, prefetch) in queues.due(self.slots.count(), look_ahead) {
            let old = &queues.open[index];
            let source = (old.pipeline.clone(), old.name.clone());
            tracing::debug!(
                queue = old.name,
                old = old.prefetch,
                prefetch,
                "holds another number of deliveries"
            );
            metrics::counter!("tidegate_prefetch_changes_total").increment(1);
            let (deliveries, mut fresh) = self
                .open_queue(session, connection, source, prefetch)
                .await?;
            queues.deliveries.push(deliveries);
            fresh.idle = queues.open[index].idle;
            let old = std::mem::replace(&mut queues.open[index], fresh);
            old.replaced.cancel();
            // What it still delivers comes out of its stream.
            drop(old.hands.stop());
        }
        Ok(())
    }

    /// Deliveries to hold beyond the slots, which were free for a share of the time while a queue was full.
    fn look_ahead(&self, idle: Option<f64>) -> u32 {
        let (slots, running) = (self.slots.count(), self.slots.is_running());
        let look_ahead = self.pace.look_ahead(slots, running, idle);
        metrics::gauge!("tidegate_look_ahead").set(look_ahead);
        look_ahead
    }

    async fn open_queue(
        &self,
        session: &Session,
        connection: &Connection,
        (pipeline, name): (PipelineName, String),
        prefetch: u16,
    ) -> Result<(BoxStream<'static, Next>, OpenQueue), BrokerError> {
        let (deliveries, settle) = self
            .connector
            .subscribe(connection, &name, prefetch)
            .await?;
        let (hands, acks) = Hands::new(settle, prefetch, self.tally.clone());
        session.tasks.spawn(acks.run());
        let replaced = CancellationToken::new();
        let ending = {
            let (replaced, name) = (replaced.clone(), name.clone());
            futures::stream::once(async move {
                let lost = SessionError::ConsumerCancelled(name);
                (!replaced.is_cancelled()).then_some(Err(lost))
            })
        };
        let source = (hands.clone(), pipeline.clone());
        let deliveries = deliveries
            .map(|delivery| delivery.map_err(SessionError::from))
            .chain(ending.filter_map(std::future::ready))
            .map(move |delivery| (source.clone(), delivery))
            .boxed();
        let queue = OpenQueue {
            pipeline,
            name,
            hands,
            prefetch,
            replaced,
            idle: 0,
            too_many: 0,
        };
        Ok((deliveries, queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_are_not_worth_a_consumer() {
        for (now, wanted, more) in [(8, 10, false), (8, 11, true), (1, 2, true), (9, 8, false)] {
            assert_eq!(is_more(now, wanted), more, "{now} {wanted}");
        }
    }
}
