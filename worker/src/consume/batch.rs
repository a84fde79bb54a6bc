//! One batch, from delivery to ack: decode, wait for its turn, [`process`](crate::process),
//! [`commit`](crate::commit).

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::message::Delivery;
use shared::ask::ClaimAnswer;
use shared::batch::{Batch, DecodeError};
use shared::name::PipelineName;
use shared::outcome::Outcome;
use shared::signing::Purpose;

use super::{ConsumeStage, Session};
use crate::commit::{SinkAway, Work};
use crate::cursor::Cursor;
use crate::handler::HandlerError;
use crate::held::Held;
use crate::process::{Processed, process};
use crate::registry::Served;
use crate::slots::Slot;

/// Of the broker's consumer timeout, room for storing, reporting and RabbitMQ's own check, which runs once a minute.
const CONSUMER_TIMEOUT_MARGIN: Duration = Duration::from_mins(3);

/// Reason of a release because the run was cancelled.
const CANCELLED: &str = "cancelled";

/// What a batch that waited is to do.
enum Turn<'a> {
    /// Run in this slot.
    Run(Slot<'a>),
    /// Run with all slots to itself.
    Alone(Slot<'a>),
    /// Go to somebody else.
    GiveBack,
    /// Nothing: its run was cancelled.
    Cancelled,
    /// Nothing: it is settled, or goes out again by itself.
    Drop,
}

/// Why no batch can be finished for now.
#[derive(Debug, thiserror::Error)]
enum Away {
    #[error(transparent)]
    Sink(#[from] SinkAway),
    /// With the delivery: it goes back only when this worker takes no more.
    #[error("no coordinator gives leave for calls")]
    Coordinator(Box<Held>),
}

impl ConsumeStage {
    /// One batch, from delivery to ack.
    pub(super) async fn work(
        self: Arc<Self>,
        session: Arc<Session>,
        pipeline: PipelineName,
        held: Held,
        delivery: Delivery,
    ) {
        let redelivered = delivery.redelivered;
        let checked = self.connector.check(Purpose::Work, &delivery);
        let decoded = checked
            .map_err(DecodeError::from)
            .and_then(|()| Batch::decode(&delivery.properties, &delivery.data));
        let batch = match decoded {
            Ok(batch) => batch,
            Err(error) => {
                // What seldom happens stands apart, so that every batch's task need not have room for it.
                let refusing = self.refuse(held, delivery, &pipeline, error);
                return Box::pin(refusing).await;
            }
        };
        drop(delivery);
        let work = Work {
            held: held.of(batch.id, &self.holding),
            batch: Arc::new(batch),
            redelivered,
            took: None,
        };
        shared::failpoint::reach("w.delivered");
        if redelivered {
            tracing::info!(batch.id = %work.batch.id, attempt = %work.batch.attempt, key = %work.batch.key, "took over a batch that somebody else had");
            metrics::counter!("tidegate_redelivered_total").increment(1);
        }
        let Some(served) = self.registry.get(&work.batch.pipeline) else {
            let reason = "unknown_pipeline".to_owned();
            return self.commit.report(work, Outcome::Released { reason }).await;
        };
        let ended = match self.turn(&session, served, &work).await {
            Turn::Run(slot) => {
                self.run_and_finish(&session, served, work, Some(slot))
                    .await
            }
            Turn::Alone(slots) => {
                let ended = self.run_and_finish(&session, served, work, None).await;
                // Nothing else has run until its outcome was safe.
                drop(slots);
                ended
            }
            Turn::GiveBack => {
                work.held.give_back().await;
                Ok(())
            }
            Turn::Cancelled => {
                let reason = CANCELLED.to_owned();
                let released = Some(Outcome::Released { reason });
                Box::pin(self.end_unrun(served, work, released)).await
            }
            Turn::Drop => Box::pin(self.end_unrun(served, work, None)).await,
        };
        match ended {
            Ok(()) => {}
            Err(Away::Sink(error)) => {
                tracing::error!(%error, "giving work back until the sink answers");
                session.sink_away.cancel();
            }
            Err(Away::Coordinator(held)) => {
                tracing::warn!("giving work back until a coordinator answers");
                session.coordinator_away.cancel();
                tokio::select! {
                    () = session.closed.cancelled() => {}
                    () = session.over.cancelled() => {}
                }
                held.give_back().await;
            }
        }
    }

    /// Waits for a slot, or for a reason not to run.
    async fn turn(&self, session: &Session, served: &Served, work: &Work) -> Turn<'_> {
        if let Some(slot) = self.slot_at_once(session, work) {
            return Turn::Run(slot);
        }
        let patience = self
            .consumer_timeout
            .saturating_sub(served.deadline + CONSUMER_TIMEOUT_MARGIN);
        let waiting = async {
            if work.redelivered {
                Box::pin(self.suspects_turn(work)).await
            } else {
                Turn::Run(self.slots.take().await)
            }
        };
        let turn = tokio::select! {
            biased;
            () = session.closed.cancelled() => Turn::GiveBack,
            () = session.over.cancelled() => Turn::GiveBack,
            () = self.control.cancelled.wait(work.batch.run) => Turn::Cancelled,
            // The draining worker starts nothing, but gives back only once its queues are closed.
            turn = waiting, if !self.draining.is_cancelled() => turn,
            () = tokio::time::sleep(patience) => {
                tracing::warn!(batch.id = %work.batch.id, "waited too long for a slot, giving the batch back");
                Turn::GiveBack
            }
        };
        if self.draining.is_cancelled() && matches!(turn, Turn::Run(_) | Turn::Alone(_)) {
            drop(turn);
            session.closed.cancelled().await;
            return Turn::GiveBack;
        }
        turn
    }

    /// A slot that is free, where nothing has to be asked and nothing speaks against running: mostly so, and much
    /// cheaper than waiting for several things at once.
    fn slot_at_once(&self, session: &Session, work: &Work) -> Option<Slot<'_>> {
        let is_to_wait = work.redelivered
            || self.draining.is_cancelled()
            || session.closed.is_cancelled()
            || session.over.is_cancelled()
            || self.control.cancelled.contains(work.batch.run);
        if is_to_wait {
            return None;
        }
        self.slots.try_take()
    }

    /// A batch that was delivered before may have killed its worker: the coordinator knows.
    ///
    /// It asks twice when it is to run alone: what waits for the others to end is not to blame if one of them
    /// kills this worker, so the coordinator notes who runs it alone only when nothing else does.
    async fn suspects_turn(&self, work: &Work) -> Turn<'_> {
        let answer = self.claimant.claim(&work.batch, false).await;
        match answer {
            Some(ClaimAnswer::Run) => return Turn::Run(self.slots.take().await),
            Some(ClaimAnswer::Drop) => return Turn::Drop,
            Some(ClaimAnswer::Cancelled) => return Turn::Cancelled,
            Some(ClaimAnswer::Alone) | None => {}
        }
        // First come, first served: whoever asks for a slot after this waits until this one is done.
        let all = self.slots.take_all().await;
        tracing::info!(batch.id = %work.batch.id, "runs a batch alone that its last worker may have died of");
        if answer.is_none() {
            return Turn::Alone(all);
        }
        match self.claimant.claim(&work.batch, true).await {
            Some(ClaimAnswer::Run | ClaimAnswer::Alone) | None => Turn::Alone(all),
            Some(ClaimAnswer::Drop) => Turn::Drop,
            Some(ClaimAnswer::Cancelled) => Turn::Cancelled,
        }
    }

    /// The outcome that is stored already, where the batch may have been done before.
    async fn done_before(&self, served: &Served, work: &Work) -> Result<Option<Outcome>, SinkAway> {
        if is_again(work) {
            self.commit.find(&work.batch, &served.sink).await
        } else {
            Ok(None)
        }
    }

    /// How far an earlier attempt came, where there may have been one. Without an answer this one starts from the
    /// beginning.
    async fn cursor(&self, work: &Work) -> Cursor {
        let mut found = None;
        if is_again(work) {
            found = self.cursors.cursor(work.batch.id).await.unwrap_or_else(|error| {
                tracing::warn!(batch.id = %work.batch.id, %error, "cannot read a cursor, the batch starts from the beginning");
                None
            });
        }
        Cursor::kept_in(self.cursors.clone(), found)
    }

    /// Ends a batch without running it. What is stored is reported all the same: work that was committed is
    /// never called anything but completed.
    async fn end_unrun(
        &self,
        served: &Served,
        work: Work,
        otherwise: Option<Outcome>,
    ) -> Result<(), Away> {
        match self.done_before(served, &work).await {
            Ok(found) => match found.or(otherwise) {
                Some(outcome) => self.commit.report(work, outcome).await,
                None => work.held.ack(),
            },
            Err(away) => {
                work.held.give_back().await;
                return Err(away.into());
            }
        }
        Ok(())
    }

    async fn run_and_finish(
        &self,
        session: &Session,
        served: &Served,
        mut work: Work,
        slot: Option<Slot<'_>>,
    ) -> Result<(), Away> {
        match self.done_before(served, &work).await {
            Ok(None) => {}
            Ok(Some(outcome)) => {
                drop(slot);
                self.commit.report(work, outcome).await;
                return Ok(());
            }
            Err(away) => {
                work.held.give_back().await;
                return Err(away.into());
            }
        }
        let started = Instant::now();
        let unwanted = async {
            tokio::select! {
                biased;
                () = session.over.cancelled() => {}
                () = self.control.cancelled.wait(work.batch.run) => {}
            }
        };
        let processed = process(
            &self.threads,
            served,
            work.batch.clone(),
            self.cursor(&work).await,
            self.holding.reporter(work.batch.id),
            self.permits.clone(),
            unwanted,
        )
        .await;
        work.took = Some(started.elapsed());
        served.seconds.record(started.elapsed());
        shared::failpoint::reach("w.handler.done");
        match processed {
            Processed::Ended(Err(HandlerError::CoordinatorAway)) => {
                Err(Away::Coordinator(Box::new(work.held)))
            }
            Processed::Ended(ended) => {
                let begun = Instant::now();
                let finished = self.commit.finish(work, ended, &served.sink, slot).await;
                self.pace.note_round_trip(begun.elapsed());
                finished.map_err(Away::Sink)
            }
            Processed::Stopped if session.over.is_cancelled() => {
                work.held.give_back().await;
                Ok(())
            }
            Processed::NotStarted => {
                tracing::warn!(batch.id = %work.batch.id, "gives a batch back that found no thread to run on before its deadline");
                metrics::counter!("tidegate_handlers_not_started_total").increment(1);
                drop(slot);
                work.held.give_back().await;
                Ok(())
            }
            Processed::Stopped => {
                drop(slot);
                tracing::info!(batch.id = %work.batch.id, run.id = %work.batch.run, "stopped a batch whose run was cancelled");
                let reason = CANCELLED.to_owned();
                self.commit.report(work, Outcome::Released { reason }).await;
                Ok(())
            }
        }
    }
}

/// Whether somebody may have worked on it before.
fn is_again(work: &Work) -> bool {
    work.redelivered || work.batch.attempt.number() > 1
}
