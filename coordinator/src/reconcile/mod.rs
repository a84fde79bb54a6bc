//! Reconciliation: finds batches that are out and nowhere to be found, and has them go out again.
//!
//! A queue was purged or deleted, the broker lost its disk, an outcome went down with it: after a while nobody has
//! the batch, and [`evidence`] says so. It looks whenever [`crate::depths`] has looked.

pub mod evidence;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use shared::broker::Depth;
use shared::name::Lane;
use shared::topology::{outcomes_queue, work_queue};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::depths::{Depths, Looks};
use crate::ledger::{
    Effect, Judged, LedgerError, OutSince, ReconciliationLedger, Settled, SettlementLedger, Verdict,
};
use crate::notice::Notice;
use crate::presence::SharedFleet;
use crate::settlement::Pulse;
use crate::topology::Topology;
use evidence::{Doubt, Evidence, judge};

/// Most batches that are looked at in one round: the largest windows of five pipelines.
const ROUND: u32 = 50_000;
/// Most batches of one transaction.
const GROUP: usize = 500;

/// The stage.
pub struct ReconcileStage {
    /// Says what is out.
    pub ledger: Arc<dyn ReconciliationLedger>,
    /// Where the lost are settled.
    pub settlement: Arc<dyn SettlementLedger>,
    /// How full the queues are.
    pub looks: Looks,
    /// Knows which queues were declared anew.
    pub topology: Topology,
    /// Knows who has what.
    pub fleet: SharedFleet,
    /// Knows whether an outcome is being settled.
    pub pulse: Arc<Mutex<Pulse>>,
    /// How many lanes there are.
    pub lanes: u16,
    /// How long nobody may have had a batch.
    pub after: Duration,
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
    /// Ends the stage.
    pub draining: CancellationToken,
}

/// When each queue was last seen empty, and the time before that.
#[derive(Debug, Default)]
struct Sightings(HashMap<String, (Instant, Option<Instant>)>);

impl Sightings {
    fn note(&mut self, depths: &Depths) {
        for (queue, depth) in &depths.queues {
            if matches!(depth, Depth::Missing | Depth::There { ready: 0, .. }) {
                let before = self.0.get(queue).map(|(last, _)| *last);
                self.0.insert(queue.clone(), (depths.at, before));
            }
        }
    }

    /// The earlier of the last two times.
    fn twice_since(&self, queue: &str) -> Option<Instant> {
        self.0.get(queue)?.1
    }
}

impl ReconcileStage {
    /// Looks until draining.
    pub async fn run(mut self) -> Result<(), Infallible> {
        let mut sightings = Sightings::default();
        let mut told_of_strangers = false;
        loop {
            tokio::select! {
                changed = self.looks.changed() => if changed.is_err() {
                    // Who looks has ended, which it does only while the process drains.
                    self.draining.cancelled().await;
                },
                () = self.draining.cancelled() => return Ok(()),
            }
            let depths = self.looks.borrow_and_update().clone();
            let Some(depths) = depths else { continue };
            sightings.note(&depths);
            if !self.can_hear(&depths) {
                continue;
            }
            match self.round(&depths, &sightings).await {
                Ok(doubts) => {
                    let strangers = doubts.get(&Doubt::Strangers).copied();
                    if let Some(batches) = strangers.filter(|_| !told_of_strangers) {
                        tracing::warn!(
                            batches,
                            "work queues have consumers that are no live worker: nothing there is taken for lost"
                        );
                    }
                    told_of_strangers = strangers.is_some();
                }
                Err(error) => tracing::error!(%error, "cannot look for lost batches"),
            }
        }
    }

    /// Whether workers could say what they have.
    fn can_hear(&self, depths: &Depths) -> bool {
        let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        if depths.blocked {
            fleet.excuse_silence(Instant::now());
        }
        fleet.is_listening() && !depths.blocked
    }

    async fn round(
        &self,
        depths: &Depths,
        sightings: &Sightings,
    ) -> Result<BTreeMap<Doubt, usize>, LedgerError> {
        let now = Timestamp::now();
        let shortest = self.after.min(evidence::GONE_PATIENCE);
        let before = now.checked_sub(shortest).unwrap_or(Timestamp::MIN);
        let out = self.ledger.out_since(before, ROUND).await?;
        let mut doubts: BTreeMap<Doubt, usize> = BTreeMap::new();
        let mut lost = Vec::new();
        for batch in &out {
            match judge(&self.evidence(batch, depths, sightings, now), self.after) {
                Ok(()) => lost.push(batch),
                Err(doubt) => *doubts.entry(doubt).or_default() += 1,
            }
        }
        if !doubts.is_empty() {
            tracing::debug!(?doubts, "batches that are out and may not be lost");
        }
        for group in lost.chunks(GROUP) {
            match self.settle(group).await {
                Err(LedgerError::Damaged { .. }) if group.len() > 1 => {
                    // One row that makes no sense holds up nobody else.
                    for batch in group {
                        if let Err(error) = self.settle(std::slice::from_ref(batch)).await {
                            tracing::error!(%error, batch.id = %batch.id, "cannot have a lost batch go out again");
                        }
                    }
                }
                settled => settled?,
            }
        }
        Ok(doubts)
    }

    fn evidence(
        &self,
        batch: &OutSince,
        depths: &Depths,
        sightings: &Sightings,
        clock: Timestamp,
    ) -> Evidence {
        let now = Instant::now();
        let out_for = Duration::try_from(clock.duration_since(batch.since)).unwrap_or_default();
        let lane: Lane = batch.key.lane(self.lanes);
        let queue = work_queue(&batch.pipeline, lane);
        let depth = depths.queues.get(&queue);
        let declared_anew = self
            .topology
            .mended(&queue)
            .is_some_and(|at| now.saturating_duration_since(at) < out_for);
        let fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        let consumers = match depth {
            Some(Depth::There { consumers, .. }) => *consumers,
            _ => 0,
        };
        Evidence {
            now,
            out_for,
            unheard: fleet.unheard(batch.id, now),
            strangers: consumers > fleet.serving(&batch.pipeline),
            queue_gone: declared_anew || depth == Some(&Depth::Missing),
            work_empty: sightings.twice_since(&queue),
            outcomes_empty: sightings.twice_since(&outcomes_queue(lane)),
            caught_up: self
                .pulse
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .caught_up(now),
            blocked: depths.blocked,
        }
    }

    async fn settle(&self, lost: &[&OutSince]) -> Result<(), LedgerError> {
        let judged = |batch: &&OutSince| Judged {
            batch: batch.id,
            attempt: batch.attempt,
            worker: None,
            took: None,
            verdict: Verdict::Lose,
        };
        let group: Vec<Judged> = lost.iter().map(judged).collect();
        let settled = self.settlement.settle(&group, Timestamp::now()).await?;
        let again = settled.iter().filter(|settled| went_again(settled)).count();
        if again > 0 {
            let first = lost.first().map(|batch| batch.id.to_string());
            tracing::warn!(
                batches = again,
                batch.id = first,
                "batches were lost, they go out again"
            );
            metrics::counter!("tidegate_lost_total").increment(again as u64);
        }
        // Only while draining does nobody listen.
        let _ = self.notices.send(Notice::Settled(settled)).await;
        Ok(())
    }
}

fn went_again(settled: &Settled) -> bool {
    matches!(settled.effect, Effect::Again | Effect::Cancelled)
}
