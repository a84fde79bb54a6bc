//! Dispatch: takes pending batches out of the ledger, fairly and as many as the windows allow, publishes
//! them confirmed, and records the confirmed ones as out.
//!
//! Three tasks, each working on a group while the next one gathers: this one owns the [`Dispatcher`] and
//! decides, [`publish`] publishes, [`record`] records. *Publish, then record*: a crash between the two
//! publishes a few batches twice with the same attempt number, which every later step tolerates; the other
//! way round would lose them.
//!
//! So at most a window of batches is in the work queues of a pipeline at a time; after a crash, for a while,
//! also the copies of what was published and not recorded: two groups, one being published and one being
//! recorded.

pub mod dispatcher;
mod key;
mod publish;
mod record;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shared::broker::PublishingPool;
use shared::config::Config;
use shared::id::BatchId;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::ledger::{Backlog, DispatchLedger, Effect, LedgerError, Page};
use crate::notice::Notice;
use crate::topology::Topology;
use dispatcher::{Dispatch, Dispatcher};

/// Most batches published as one group: enough to hide the broker's round trip, few enough that the
/// next decision is never far away.
const WAVE: usize = 512;
/// How long to leave a ledger alone that did not answer.
const LEDGER_PAUSE: Duration = Duration::from_millis(500);
/// Longest sleep without a reason to wake: bounds the harm of a wall clock that was set back.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// What the publishing and recording tasks answer.
#[derive(Debug)]
enum Answer {
    /// These do not wait any more: they were settled since they were read.
    Gone(Vec<Dispatch>),
    /// These could not be published.
    Unpublished(Vec<Dispatch>),
    /// These are recorded as out.
    Recorded(Vec<BatchId>),
}

/// The stage, before it runs.
pub struct DispatchStage {
    /// Where pending batches are read and outs are recorded.
    pub ledger: Arc<dyn DispatchLedger>,
    /// Where publishers come from.
    pub publishing: PublishingPool,
    /// Asked for when a message finds no queue.
    pub topology: Topology,
    /// What the other stages say.
    pub notices: mpsc::Receiver<Notice>,
    /// Ends the stage: nothing new goes out, what is being published is recorded.
    pub draining: CancellationToken,
}

impl DispatchStage {
    /// Runs until draining.
    pub async fn run(mut self, config: Config) -> Result<(), LedgerError> {
        let mut dispatcher = self.start(&config).await?;
        let (waves, waves_in) = mpsc::channel(1);
        let (confirmed, confirmed_in) = mpsc::channel(64);
        let (answers, mut answered) = mpsc::channel(64);
        let mut helpers = JoinSet::new();
        helpers.spawn(publish::run(publish::Publishing {
            ledger: self.ledger.clone(),
            pool: self.publishing.clone(),
            topology: self.topology.clone(),
            lanes: config.lanes,
            waves: waves_in,
            confirmed,
            answers: answers.clone(),
        }));
        helpers.spawn(record::run(self.ledger.clone(), confirmed_in, answers));
        while !self.draining.is_cancelled() {
            let more = self.dispatch(&mut dispatcher, &waves).await;
            let next_due = sleep_until_due(dispatcher.wake(Timestamp::now()));
            tokio::select! {
                notice = self.notices.recv() => match notice {
                    Some(notice) => self.hear(&mut dispatcher, notice).await,
                    None => break,
                },
                Some(answer) = answered.recv() => hear_answer(&mut dispatcher, answer),
                // Neither ends by itself while there are waves to come.
                Some(ended) = helpers.join_next() => {
                    pass_on_panic(ended);
                    break;
                }
                // Room for another wave, or time for another batch: the loop looks again.
                _ = waves.reserve(), if more => {}
                () = tokio::time::sleep(next_due) => {}
                () = self.draining.cancelled() => {}
            }
            while let Ok(notice) = self.notices.try_recv() {
                self.hear(&mut dispatcher, notice).await;
            }
            while let Ok(answer) = answered.try_recv() {
                hear_answer(&mut dispatcher, answer);
            }
        }
        drop(waves);
        // Nobody decides any more, but the two tasks may still have something to say.
        while answered.recv().await.is_some() {}
        while let Some(ended) = helpers.join_next().await {
            pass_on_panic(ended);
        }
        Ok(())
    }

    /// What the ledger knows: everything that is out, and the heads of everything that is pending.
    async fn start(&self, config: &Config) -> Result<Dispatcher, LedgerError> {
        let mut dispatcher = Dispatcher::new(&config.pipelines);
        for out in self.ledger.outs().await? {
            let batch = out.id;
            if !dispatcher.was_out(out) {
                tracing::warn!(batch.id = %batch, "a batch is out whose pipeline is not configured any more");
            }
        }
        let backlogs = self.ledger.backlogs(None).await?;
        tracing::info!(
            out = dispatcher.out(),
            backlogs = backlogs.len(),
            "dispatch starts"
        );
        add(&mut dispatcher, &backlogs);
        Ok(dispatcher)
    }

    /// Sends at most one wave. Whether there may be more when the publishing task has room.
    async fn dispatch(
        &self,
        dispatcher: &mut Dispatcher,
        waves: &mpsc::Sender<Vec<Dispatch>>,
    ) -> bool {
        let Ok(room) = waves.try_reserve() else {
            return true;
        };
        loop {
            let now = Timestamp::now();
            let reads = dispatcher.reads(now);
            for read in &reads {
                let page = match self
                    .ledger
                    .read_pending(&read.backlog, now, read.limit)
                    .await
                {
                    Ok(page) => page,
                    Err(error) => {
                        tracing::error!(%error, "cannot read what is pending");
                        Page {
                            batches: vec![],
                            more_due: now.checked_add(LEDGER_PAUSE).ok(),
                        }
                    }
                };
                dispatcher.read(&read.backlog, page, now);
            }
            let wave = dispatcher.take(now, WAVE);
            if !wave.is_empty() {
                room.send(wave);
                return true;
            }
            if reads.is_empty() {
                return false;
            }
        }
    }

    async fn hear(&self, dispatcher: &mut Dispatcher, notice: Notice) {
        match notice {
            Notice::Slots(slots) => dispatcher.slots(&slots),
            Notice::Settled(settled) => {
                for settled in settled {
                    // A duplicate says that the batch is final, so nothing of it can be out.
                    if !matches!(settled.effect, Effect::Stale | Effect::Unknown) {
                        dispatcher.settled(settled.batch);
                    }
                    add(dispatcher, &settled.backlogs);
                }
            }
            Notice::Pending(backlogs) => add(dispatcher, &backlogs),
            Notice::Stopped(_)
            | Notice::Changed(_)
            | Notice::PipelinePaused(..)
            | Notice::Parked { .. } => {}
            Notice::Accepted(run) => loop {
                match self.ledger.backlogs(Some(run)).await {
                    Ok(backlogs) => return add(dispatcher, &backlogs),
                    Err(error) => tracing::error!(%error, run.id = %run, "cannot read a new run"),
                }
                tokio::select! {
                    () = tokio::time::sleep(LEDGER_PAUSE) => {}
                    () = self.draining.cancelled() => return,
                }
            },
        }
    }
}

fn add(dispatcher: &mut Dispatcher, backlogs: &[Backlog]) {
    let now = Timestamp::now();
    for backlog in backlogs {
        if !dispatcher.pending(backlog, now) {
            let pipeline = &backlog.id.pipeline;
            tracing::warn!(%pipeline, run.id = %backlog.id.run, "batches wait for a pipeline that is not configured");
        }
    }
}

fn hear_answer(dispatcher: &mut Dispatcher, answer: Answer) {
    match answer {
        Answer::Recorded(batches) => dispatcher.recorded(&batches),
        Answer::Gone(batches) => {
            for dispatch in batches {
                dispatcher.gone(&dispatch, Timestamp::now());
            }
        }
        Answer::Unpublished(batches) => {
            for dispatch in batches {
                dispatcher.unpublished(dispatch);
            }
        }
    }
}

/// A panic in a helper is the stage's own: it stops the process.
fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn sleep_until_due(due: Option<Timestamp>) -> Duration {
    let Some(due) = due else {
        return LONGEST_SLEEP;
    };
    let span = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
    span.min(LONGEST_SLEEP)
}
