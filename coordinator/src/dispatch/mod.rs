//! Dispatch: takes pending batches out of the ledger, fairly and as many as the windows allow, publishes
//! them confirmed, and records the confirmed ones as out.
//!
//! The stage owns the [`Dispatcher`] and decides; for each pipeline a task publishes ([`publish`]), and one
//! records ([`record`]). Each works on a group while the next one gathers. *Publish, then record*: a crash
//! between the two publishes a few batches twice with the same attempt number, which every later step
//! tolerates; the other way round would lose them.
//!
//! So at most a window of batches is in the work queues of a pipeline at a time; after a crash, for a while,
//! also the copies of what was published and not recorded: two groups, one being published and one being
//! recorded.

mod demand;
pub mod dispatcher;
mod hearing;
mod key;
mod parks;
mod pipeline;
mod places;
mod publish;
mod record;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use shared::broker::PublishingPool;
use shared::config::Config;
use shared::id::RunId;
use shared::name::PipelineName;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::ledger::{DispatchLedger, LedgerError, Page};
use crate::notice::Notice;
use crate::topology::Topology;
use dispatcher::{Dispatch, Dispatcher, Read};
use hearing::{Answer, add, hear, hear_answer};

/// Most batches published as one group: enough to hide the broker's round trip, few enough that the
/// next decision is never far away.
const WAVE: u32 = 512;
/// Pages that are read at a time: as many as the ledger has connections for readers.
const READS: usize = 4;
/// How long to leave a ledger alone that did not answer.
const LEDGER_PAUSE: Duration = Duration::from_millis(500);
/// Longest sleep without a reason to wake: bounds the harm of a wall clock that was set back.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How often the stages downstream are asked how much they have.
const LOOK: Duration = Duration::from_secs(1);
/// How often the places are compared with the ledger.
const COMPARE: Duration = Duration::from_mins(1);

/// The stage, before it runs.
pub struct DispatchStage {
    /// Where pending batches are read and outs are recorded.
    pub ledger: Arc<dyn DispatchLedger>,
    /// Where publishers come from.
    pub publishing: PublishingPool,
    /// Asked for when a message finds no queue.
    pub topology: Topology,
    /// Pipelines from which nothing goes out at first.
    pub paused: BTreeSet<PipelineName>,
    /// What the other stages say.
    pub notices: mpsc::Receiver<Notice>,
    /// Ends the stage: nothing new goes out, what is being published is recorded.
    pub draining: CancellationToken,
}

/// Where each pipeline's waves go.
type Lines = BTreeMap<PipelineName, mpsc::Sender<Vec<Dispatch>>>;

impl DispatchStage {
    /// Runs until draining.
    pub async fn run(mut self, config: Config) -> Result<(), LedgerError> {
        let mut dispatcher = self.start(&config).await?;
        let mut helpers = JoinSet::new();
        let (answers, mut answered) = mpsc::channel(64);
        let lines = self.spawn_helpers(&config, &mut helpers, answers);
        let (mut look, mut compare) = (every(LOOK), every(COMPARE));
        let mut in_doubt = false;
        while !self.draining.is_cancelled() {
            dispatcher.wake(Timestamp::now());
            for (pipeline, line) in &lines {
                self.dispatch(&mut dispatcher, pipeline, line).await;
            }
            tokio::select! {
                notice = self.notices.recv() => match notice {
                    Some(notice) => self.hear(&mut dispatcher, notice).await,
                    None => break,
                },
                Some(answer) = answered.recv() => hear_answer(&mut dispatcher, answer, Timestamp::now()),
                // None ends by itself while there are waves to come.
                Some(ended) = helpers.join_next() => {
                    pass_on_panic(ended);
                    break;
                }
                () = tokio::time::sleep(until(dispatcher.next_due())) => {}
                _ = look.tick() => self.look_downstream(&mut dispatcher).await,
                _ = compare.tick() => {
                    // What was in doubt may have happened a little after it was looked for.
                    if self.compare(&mut dispatcher).await || in_doubt {
                        in_doubt = false;
                        self.read_backlogs(&mut dispatcher, None).await;
                    }
                }
                () = self.ledger.doubted() => {
                    in_doubt = true;
                    // Twice: a place is freed when its batch was not out the time before, too. What holds a
                    // place is left out of what is read next.
                    self.compare(&mut dispatcher).await;
                    self.compare(&mut dispatcher).await;
                    self.read_backlogs(&mut dispatcher, None).await;
                }
                () = self.draining.cancelled() => {}
            }
            while let Ok(notice) = self.notices.try_recv() {
                self.hear(&mut dispatcher, notice).await;
            }
            while let Ok(answer) = answered.try_recv() {
                hear_answer(&mut dispatcher, answer, Timestamp::now());
            }
        }
        drop(lines);
        // Nobody decides any more, but the tasks may still have something to say.
        while answered.recv().await.is_some() {}
        while let Some(ended) = helpers.join_next().await {
            pass_on_panic(ended);
        }
        Ok(())
    }

    fn spawn_helpers(
        &self,
        config: &Config,
        helpers: &mut JoinSet<()>,
        answers: mpsc::Sender<Answer>,
    ) -> Lines {
        let mut lines = Lines::new();
        let (confirmed, confirmed_in) = mpsc::channel(64);
        for pipeline in config.pipelines.keys() {
            let (line, waves) = mpsc::channel(1);
            helpers.spawn(publish::run(publish::Publishing {
                pipeline: pipeline.clone(),
                ledger: self.ledger.clone(),
                pool: self.publishing.clone(),
                topology: self.topology.clone(),
                lanes: config.lanes,
                waves,
                confirmed: confirmed.clone(),
                answers: answers.clone(),
            }));
            lines.insert(pipeline.clone(), line);
        }
        helpers.spawn(record::run(self.ledger.clone(), confirmed_in, answers));
        lines
    }

    /// What the ledger knows: everything that is out, and where something is pending.
    async fn start(&self, config: &Config) -> Result<Dispatcher, LedgerError> {
        let mut dispatcher = Dispatcher::new(&config.pipelines);
        for out in self.ledger.outs().await? {
            let batch = out.id;
            if !dispatcher.was_out(out) {
                tracing::warn!(batch.id = %batch, "a batch is out whose pipeline is not configured any more");
            }
        }
        for pipeline in &self.paused {
            dispatcher.pause(pipeline, true);
        }
        let backlogs = self.ledger.backlogs(None).await?;
        tracing::info!(
            out = dispatcher.out(),
            backlogs = backlogs.len(),
            "dispatch starts"
        );
        add(&mut dispatcher, &backlogs, Timestamp::now());
        self.look_downstream(&mut dispatcher).await;
        Ok(dispatcher)
    }

    /// Sends at most one wave of a pipeline, if its publishing task has room.
    async fn dispatch(
        &self,
        dispatcher: &mut Dispatcher,
        pipeline: &PipelineName,
        line: &mpsc::Sender<Vec<Dispatch>>,
    ) {
        let Ok(room) = line.try_reserve() else {
            return;
        };
        let now = Timestamp::now();
        let mut wave = Vec::new();
        loop {
            let limit = WAVE.saturating_sub(u32::try_from(wave.len()).unwrap_or(WAVE));
            let taken = dispatcher.take(pipeline, now, limit);
            wave.extend(taken.batches);
            if taken.reads.is_empty() {
                break;
            }
            self.read(dispatcher, taken.reads, now).await;
        }
        if !wave.is_empty() {
            room.send(wave);
        }
    }

    /// Reads the pages that were asked for, a few at a time.
    async fn read(&self, dispatcher: &mut Dispatcher, reads: Vec<Read>, now: Timestamp) {
        let pages = futures::stream::iter(reads).map(async |read| {
            let page = self.ledger.read_pending(&read.backlog, now, read.limit);
            let page = page.await.unwrap_or_else(|error| {
                tracing::error!(%error, "cannot read what is pending");
                Page {
                    batches: vec![],
                    more_due: now.checked_add(LEDGER_PAUSE).ok(),
                }
            });
            (read, page)
        });
        let mut pages = std::pin::pin!(pages.buffered(READS));
        while let Some((read, page)) = pages.next().await {
            dispatcher.page(&read, page, now);
        }
    }

    /// Tells the dispatcher how much waits in the pipelines that others feed.
    async fn look_downstream(&self, dispatcher: &mut Dispatcher) {
        for (pipeline, enough) in dispatcher.looks() {
            match self.ledger.waiting(&pipeline, enough).await {
                Ok(waiting) => dispatcher.downstream(&pipeline, waiting),
                Err(error) => {
                    tracing::error!(%error, %pipeline, "cannot count what waits downstream");
                }
            }
        }
    }

    /// Frees places of batches that the ledger does not have as out any more, and says whether there were any:
    /// only when news of a batch was lost.
    async fn compare(&self, dispatcher: &mut Dispatcher) -> bool {
        let outs = match self.ledger.outs().await {
            Ok(outs) => outs.into_iter().map(|out| out.id).collect(),
            Err(error) => {
                tracing::error!(%error, "cannot read what is out");
                return false;
            }
        };
        let lost = dispatcher.compare(&outs);
        metrics::counter!("tidegate_places_freed_total").increment(lost.len() as u64);
        for batch in &lost {
            tracing::warn!(batch.id = %batch, "a batch held a place in the window and is not out");
        }
        !lost.is_empty()
    }

    async fn hear(&self, dispatcher: &mut Dispatcher, notice: Notice) {
        if let Some(run) = hear(dispatcher, notice, Timestamp::now()) {
            self.read_backlogs(dispatcher, Some(run)).await;
        }
    }

    /// Learns what is pending of a run, or of all, as soon as the ledger says.
    async fn read_backlogs(&self, dispatcher: &mut Dispatcher, run: Option<RunId>) {
        loop {
            match self.ledger.backlogs(run).await {
                Ok(backlogs) => return add(dispatcher, &backlogs, Timestamp::now()),
                Err(error) => {
                    let run = run.map(|run| run.to_string());
                    tracing::error!(%error, run.id = run, "cannot read where something is pending");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LEDGER_PAUSE) => {}
                () = self.draining.cancelled() => return,
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

/// Ticks that are not made up for when the stage was busy. The first comes at once.
fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn until(due: Option<Timestamp>) -> Duration {
    let Some(due) = due else {
        return LONGEST_SLEEP;
    };
    let span = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
    span.min(LONGEST_SLEEP)
}
