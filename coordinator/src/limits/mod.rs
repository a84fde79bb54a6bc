//! Limits: how fast the fleet calls the services that it works with.
//!
//! The coordinator that owns the first lane holds the [`Limiter`], a state machine without IO or clock, and
//! answers each permit with the moment at which the call may start. [`SharedLimits`] is the way to it;
//! [`stage`] tells the dispatcher whose work has to wait and has the ledger remember what a restart must not
//! forget.

mod bucket;
mod limiter;
mod line;
pub mod stage;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use shared::ask::{Feedback, PermitAnswer, PermitRequest};
use shared::config::Config;
use shared::name::{Key, LimitName, PipelineName};
use tokio::sync::Notify;
use utoipa::ToSchema;

use crate::ask::Permits;
use limiter::Limiter;

/// A moment, as a state machine without a clock is told it.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// Monotonic: a span since a day before the process started, so that what was a while ago has a number.
    at: Duration,
    /// For what outlives the process, and for people.
    wall: Timestamp,
    /// Between 0 and 1.
    random: f64,
}

impl Moment {
    /// A monotonic time on the wall clock.
    fn wall_at(self, at: Duration) -> Timestamp {
        let span = |span: Duration| SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
        let ahead = span(at).saturating_sub(span(self.at));
        self.wall.saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }

    /// A time of the wall clock as monotonic time.
    fn span_of(self, wall: Timestamp) -> Duration {
        let ahead = wall.duration_since(self.wall);
        match Duration::try_from(ahead) {
            Ok(ahead) => self.at.saturating_add(ahead),
            Err(_) => self.at.saturating_sub(ahead.unsigned_abs()),
        }
    }
}

/// One key's share of a limit, as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitView {
    /// Which limit.
    #[schema(value_type = String)]
    pub limit: LimitName,
    /// Whose share; the pipeline's name where pipelines share it. `None`: everybody's, or nobody has used
    /// the limit lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub key: Option<Key>,
    /// Calls per minute that it may make now. `None`: the limit has no rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<f64>,
    /// The most that may become; the same unless the limit is adaptive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_minute: Option<f64>,
    /// When the next call may start; `None`: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// Calls that have a place in line and wait for it.
    pub waiting: u64,
    /// Until when the service wants no calls at all: a quota is used up, or it asked for a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked_until: Option<Timestamp>,
    /// Permits given, since the coordinator started or the key was last idle for long.
    pub granted: u64,
    /// Permits refused, because the wait would have been too long.
    pub parked: u64,
    /// Calls that the service refused as too fast or over a quota.
    pub throttled: u64,
}

/// All limits, shared by the stage that answers, the one that remembers, and the API.
#[derive(Clone)]
pub struct SharedLimits {
    inner: Arc<Inner>,
}

struct Inner {
    /// The standard mutex: held for arithmetic, never across an await.
    limiter: Mutex<Limiter>,
    /// Somebody has to be told that a key is held, or that a line has become long.
    wake: Notify,
    /// The configured ones.
    pipelines: BTreeSet<PipelineName>,
    started: Instant,
}

/// How long before the process's start its monotonic time begins.
const BEFORE_START: Duration = Duration::from_hours(24);

impl SharedLimits {
    /// The configured limits, of which nothing is known yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let inner = Inner {
            limiter: Mutex::new(Limiter::new(config)),
            wake: Notify::new(),
            pipelines: config.pipelines.keys().cloned().collect(),
            started: Instant::now(),
        };
        let inner = Arc::new(inner);
        Self { inner }
    }

    /// Where every limit stands, by limit and key.
    #[must_use]
    pub fn views(&self) -> Vec<LimitView> {
        let moment = self.now();
        self.limiter().views(moment)
    }

    fn now(&self) -> Moment {
        Moment {
            at: self.inner.started.elapsed() + BEFORE_START,
            wall: Timestamp::now(),
            random: rand::random(),
        }
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        // A panic while the lock was held leaves lines that are at worst too slow.
        let limiter = &self.inner.limiter;
        limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permits for SharedLimits {
    fn permit(&self, request: &PermitRequest) -> PermitAnswer {
        let moment = self.now();
        let mut limiter = self.limiter();
        let answer = limiter.permit(request, moment);
        if limiter.has_news() || limiter.runs_ahead() {
            self.inner.wake.notify_one();
        }
        drop(limiter);
        // Whatever a worker calls its pipeline, the metric has a label for each that is configured.
        let is_known = self.inner.pipelines.contains(&request.pipeline);
        count(is_known.then_some(&request.pipeline), &answer);
        answer
    }

    fn feedback(&self, feedback: &Feedback) {
        let moment = self.now();
        let mut limiter = self.limiter();
        limiter.feedback(feedback, moment);
        if limiter.has_news() {
            self.inner.wake.notify_one();
        }
    }
}

fn count(pipeline: Option<&PipelineName>, answer: &PermitAnswer) {
    let word = match answer {
        PermitAnswer::Granted { after } => {
            metrics::histogram!("tidegate_permit_wait_seconds").record(*after);
            "granted"
        }
        PermitAnswer::Parked { .. } => "parked",
        PermitAnswer::Unknown { .. } => "unknown",
    };
    let pipeline = pipeline.map_or_else(|| "unknown".to_owned(), ToString::to_string);
    metrics::counter!("tidegate_permits_total", "answer" => word, "pipeline" => pipeline)
        .increment(1);
}
