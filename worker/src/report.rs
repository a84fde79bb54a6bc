//! Reports outcomes: whatever was finished while the previous messages were being confirmed goes next,
//! up to a hundred in a message. Alone, an outcome waits for nobody.

use std::collections::BTreeMap;

use jiff::Timestamp;
use shared::backoff::Backoff;
use shared::broker::{Message, Publisher, PublishingPool, Verdict};
use shared::name::{Instance, Key, Lane, PipelineName};
use shared::outcome::{MAX_OUTCOMES_BYTES, MAX_OUTCOMES_PER_MESSAGE, Outcomes, Report};
use shared::topology::OUTCOMES;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Outcomes that may wait; more than a worker has slots.
const QUEUE: usize = 8_192;
/// Most outcomes that are confirmed together.
const GROUP: usize = 2_000;

/// The way to the reporter.
#[derive(Debug, Clone)]
pub struct Reports {
    queue: mpsc::Sender<Waiting>,
    lanes: u16,
}

#[derive(Debug)]
struct Waiting {
    lane: Lane,
    report: Report,
    confirmed: oneshot::Sender<()>,
}

impl Reports {
    /// Where the outcomes of a key's batches are reported.
    #[must_use]
    pub fn lane(&self, key: &Key) -> Lane {
        key.lane(self.lanes)
    }

    /// Reports an outcome and waits until the broker has it. `false` when the worker stops before that.
    pub async fn confirmed(&self, lane: Lane, report: Report) -> bool {
        let (confirmed, waiting) = oneshot::channel();
        self.queue
            .send(Waiting {
                lane,
                report,
                confirmed,
            })
            .await
            .is_ok()
            && waiting.await.is_ok()
    }
}

/// Publishes outcomes.
pub struct Reporter {
    queue: mpsc::Receiver<Waiting>,
    pool: PublishingPool,
    worker: Instance,
}

impl Reporter {
    /// A reporter and the way to it.
    #[must_use]
    pub fn new(pool: PublishingPool, worker: Instance, lanes: u16) -> (Reports, Self) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (
            Reports {
                queue: sender,
                lanes,
            },
            Self {
                queue,
                pool,
                worker,
            },
        )
    }

    /// Runs until nobody can report any more; what was reported by then is confirmed.
    pub async fn run(mut self) -> Result<(), std::convert::Infallible> {
        let mut publisher = self.pool.publisher();
        let mut group = Vec::new();
        while self.queue.recv_many(&mut group, GROUP).await > 0 {
            let (reports, confirmed): (Vec<_>, Vec<_>) = group
                .drain(..)
                .map(|waiting| ((waiting.lane, waiting.report), waiting.confirmed))
                .unzip();
            let counts = counts(&reports);
            let messages = self.messages(reports);
            publish(&mut publisher, messages).await;
            note(counts);
            for confirmed in confirmed {
                // Nobody waits any more: its connection is gone and the broker delivers again.
                let _ = confirmed.send(());
            }
        }
        Ok(())
    }

    /// Outcomes by lane, cut into messages of bounded count and size.
    fn messages(&self, reports: Vec<(Lane, Report)>) -> Vec<Message> {
        let mut lanes: BTreeMap<Lane, Vec<Report>> = BTreeMap::new();
        for (lane, report) in reports {
            lanes.entry(lane).or_default().push(report);
        }
        let mut messages = Vec::new();
        for (lane, reports) in lanes {
            for reports in by_size(reports) {
                messages.push(self.message(lane, reports));
            }
        }
        messages
    }

    fn message(&self, lane: Lane, reports: Vec<Report>) -> Message {
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        let outcomes = Outcomes {
            worker: self.worker.clone(),
            reports,
        };
        Message {
            exchange: OUTCOMES,
            routing_key: lane.to_string(),
            properties: Outcomes::properties(&Uuid::now_v7().to_string(), now),
            body: serde_json::to_vec(&outcomes).expect("outcomes are plain data with text keys"),
        }
    }
}

type Counts = BTreeMap<(PipelineName, &'static str), u64>;

fn counts(reports: &[(Lane, Report)]) -> Counts {
    let mut counts = Counts::new();
    for (_, report) in reports {
        let what = (report.pipeline.clone(), report.outcome.word());
        *counts.entry(what).or_default() += 1;
    }
    counts
}

fn note(counts: Counts) {
    for ((pipeline, outcome), count) in counts {
        let pipeline = pipeline.to_string();
        metrics::counter!("tidegate_outcomes_total", "pipeline" => pipeline, "outcome" => outcome)
            .increment(count);
    }
}

/// Publishes until everything is confirmed: an outcome that is lost costs a whole run of its batch.
async fn publish(publisher: &mut Publisher, mut messages: Vec<Message>) {
    let mut failures = 0;
    while !messages.is_empty() {
        match publisher.publish(&messages).await {
            Ok(verdicts) => {
                let mut verdicts = verdicts.into_iter();
                messages.retain(|_| verdicts.next() != Some(Verdict::Confirmed));
                if messages.is_empty() {
                    return;
                }
                tracing::warn!(
                    messages = messages.len(),
                    "the broker takes no outcomes, trying again"
                );
            }
            Err(error) => tracing::warn!(%error, "could not report outcomes, trying again"),
        }
        failures += 1;
        metrics::counter!("tidegate_report_failures_total").increment(1);
        tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await;
    }
}

fn by_size(reports: Vec<Report>) -> Vec<Vec<Report>> {
    let mut messages: Vec<Vec<Report>> = Vec::new();
    let mut bytes = 0;
    for report in reports {
        let size = report.outcome.follow_up_bytes();
        match messages.last_mut() {
            Some(message)
                if message.len() < MAX_OUTCOMES_PER_MESSAGE
                    && bytes + size <= MAX_OUTCOMES_BYTES =>
            {
                bytes += size;
                message.push(report);
            }
            _ => {
                bytes = size;
                messages.push(vec![report]);
            }
        }
    }
    messages
}
