//! Looks after one schedule.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use shared::backoff::Backoff;
use shared::config::{ScheduleConfig, ScheduleName, SchedulePriority};
use tokio_util::sync::CancellationToken;

use super::due::{Due, due};
use super::memory::{Fired, Remembered};
use super::{ScheduleStage, Schedules};
use crate::ledger::{Memory, MemoryLedger};
use crate::run::{Priority, Run};
use crate::submission::{Accepted, Submission, SubmissionError, SubmissionStage};

/// Longest sleep: bounds the harm of a wall clock that is set while it is slept.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Pauses between tries of a firing that the coordinator takes later perhaps.
const REFUSED: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));

/// Looks after one schedule.
pub(super) struct Keeper {
    name: ScheduleName,
    config: ScheduleConfig,
    lines: Bytes,
    submission: Arc<SubmissionStage>,
    ledger: Arc<dyn MemoryLedger>,
    shown: Schedules,
    pub(super) memory: Remembered,
    /// A firing that was refused and is tried again, and how often that happened.
    refused: Option<(Timestamp, u32)>,
}

impl Keeper {
    pub(super) fn new(
        stage: &ScheduleStage,
        name: ScheduleName,
        config: ScheduleConfig,
        memory: Remembered,
    ) -> Self {
        Self {
            name,
            lines: config.lines.clone().into(),
            config,
            submission: stage.submission.clone(),
            ledger: stage.ledger.clone(),
            shown: stage.shown.clone(),
            memory,
            refused: None,
        }
    }

    pub(super) async fn run(mut self, draining: CancellationToken) {
        while !draining.is_cancelled() {
            let pause = self.step(Timestamp::now()).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = draining.cancelled() => {}
            }
        }
    }

    /// Does one thing that is to be done now, and says how long to wait before the next.
    pub(super) async fn step(&mut self, now: Timestamp) -> Duration {
        if let Some((at, failures)) = self.refused {
            let next = self.config.timetable.next(at);
            if next.is_none_or(|next| next > now) {
                return self.fire(at, failures).await;
            }
            tracing::error!(schedule = %self.name, %at, "a firing was refused until the next one came, given up");
            self.count("given_up");
            self.look_after(at, None).await;
        }
        match due(&self.config, self.memory.looked_after, now) {
            Due::Wait(next) => return pause_until(next, now),
            Due::Fire(at) => return self.fire(at, 0).await,
            Due::Skip(to) => {
                let since = self.memory.looked_after;
                tracing::warn!(schedule = %self.name, %since, until = %to, "missed firings, skipped");
                self.count("missed");
                self.look_after(to, None).await;
            }
            Due::Rewind(to) => {
                let before = self.memory.looked_after;
                tracing::warn!(schedule = %self.name, %before, now = %to, "the clock was set back");
                self.look_after(to, None).await;
            }
        }
        Duration::ZERO
    }

    /// Submits a firing that was refused so many times, and says how long to wait.
    async fn fire(&mut self, at: Timestamp, failures: u32) -> Duration {
        let run = match self.submit(at).await {
            Ok(Accepted::New(run)) => {
                tracing::info!(schedule = %self.name, %at, run.id = %run.run, "a schedule fired");
                self.count("submitted");
                run.run
            }
            Ok(Accepted::Before(Run { run, .. })) => {
                tracing::info!(schedule = %self.name, %at, run.id = %run, "a firing was submitted before");
                self.count("repeated");
                run
            }
            Err(SubmissionError::Conflict(run)) => {
                tracing::warn!(schedule = %self.name, %at, run.id = %run, "a firing was submitted before, otherwise");
                self.count("repeated");
                run
            }
            Err(error) if may_pass(&error) => {
                tracing::warn!(schedule = %self.name, %at, %error, "a firing was refused, trying again");
                self.count("refused");
                self.refused = Some((at, failures + 1));
                self.shown
                    .note(&self.name, &self.memory, Some(error.to_string()));
                return REFUSED.draw(failures + 1);
            }
            Err(error) => {
                tracing::error!(schedule = %self.name, %at, %error, "a schedule cannot be submitted");
                self.count("failed");
                self.look_after(at, Some(error.to_string())).await;
                return Duration::ZERO;
            }
        };
        self.memory.last = Some(Fired { at, run });
        self.look_after(at, None).await;
        Duration::ZERO
    }

    async fn submit(&self, at: Timestamp) -> Result<Accepted, SubmissionError> {
        let submission = Submission {
            pipeline: self.config.pipeline.to_string(),
            priority: priority(self.config.priority),
            idempotency_key: Some(format!("schedule:{}:{at}", self.name)),
            webhook: self.config.webhook.clone(),
        };
        let lines = [Ok::<_, Infallible>(self.lines.clone())];
        self.submission
            .submit(submission, futures::stream::iter(lines))
            .await
    }

    /// Nothing up to then needs looking at any more. When that cannot be remembered, a restart looks at it
    /// again and finds it done.
    async fn look_after(&mut self, to: Timestamp, problem: Option<String>) {
        self.refused = None;
        self.memory.looked_after = to;
        self.shown.note(&self.name, &self.memory, problem);
        let entry = (self.name.as_str().to_owned(), self.memory.to_json());
        let entry = BTreeMap::from([entry]);
        if let Err(error) = self.ledger.remember(Memory::Schedule, &entry).await {
            tracing::warn!(schedule = %self.name, %error, "cannot remember up to when a schedule was looked after");
        }
    }

    fn count(&self, result: &'static str) {
        metrics::counter!("tidegate_schedule_firings_total",
            "schedule" => self.name.as_str().to_owned(), "result" => result)
        .increment(1);
    }
}

fn priority(configured: SchedulePriority) -> Priority {
    match configured {
        SchedulePriority::Low => Priority::Low,
        SchedulePriority::Normal => Priority::Normal,
        SchedulePriority::High => Priority::High,
    }
}

/// Whether the same submission may be taken later.
fn may_pass(error: &SubmissionError) -> bool {
    !matches!(
        error,
        SubmissionError::UnknownPipeline { .. }
            | SubmissionError::Line { .. }
            | SubmissionError::Empty
            | SubmissionError::IdempotencyKey
            | SubmissionError::Webhook { .. }
    )
}

fn pause_until(next: Option<Timestamp>, now: Timestamp) -> Duration {
    let left = next.map(|next| next.duration_since(now));
    left.and_then(|left| Duration::try_from(left).ok())
        .unwrap_or(LONGEST_SLEEP)
        .min(LONGEST_SLEEP)
}
