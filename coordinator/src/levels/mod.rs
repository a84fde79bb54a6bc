//! Levels: whether something piles up. `ok`, `warn` or `critical`, with hysteresis, for what waits for the
//! coordinator itself, the backlog, the work queues, and the oldest batch that could go out.

mod level;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::broker::Depth;
use shared::config::LevelsConfig;
use shared::topology::{OUTCOMES, WORK};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::depths::{Depths, Looks};
use crate::ledger::{LedgerError, OperatorViews, SubmissionLedger};
use crate::notice::Notice;
use crate::submission::{Pressure, Retry};
pub use level::{Level, Measure, Thresholds};

/// How often everything is measured.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// When whoever was refused should try again: after the next two looks.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// One measure as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeasureView {
    /// How bad it is.
    pub level: Level,
    /// What was measured last; `None` when it could not be.
    pub value: Option<u64>,
    /// From where on it is `warn`.
    pub warn: u64,
    /// From where on it is `critical`.
    pub critical: u64,
}

/// All of them, as they are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LevelsView {
    /// The worst of them.
    pub level: Level,
    /// Whether the broker takes no publishes just now.
    pub broker_blocked: bool,
    /// By what is measured.
    pub measures: BTreeMap<Measure, MeasureView>,
}

/// The levels, shared with the API.
#[derive(Debug, Clone, Default)]
pub struct SharedLevels(Arc<Mutex<LevelsView>>);

impl SharedLevels {
    /// As they are shown.
    #[must_use]
    pub fn view(&self) -> LevelsView {
        self.lock().clone()
    }

    /// Takes in what was measured, and returns what has changed: what, from, to.
    fn update(
        &self,
        config: &LevelsConfig,
        measured: &Measured,
    ) -> Vec<(Measure, Level, MeasureView)> {
        let mut view = self.lock();
        view.broker_blocked = measured.blocked;
        let mut changes = Vec::new();
        for (measure, value) in measured.values {
            let thresholds = Thresholds::of(measure, config);
            let before = view
                .measures
                .get(&measure)
                .map_or(Level::Ok, |shown| shown.level);
            // What could not be measured stays as it was.
            let level = value.map_or(before, |value| thresholds.level(before, value));
            let shown = MeasureView {
                level,
                value,
                warn: thresholds.warn,
                critical: thresholds.critical,
            };
            view.measures.insert(measure, shown);
            if level != before {
                changes.push((measure, before, shown));
            }
        }
        let worst = view.measures.values().map(|shown| shown.level).max();
        view.level = worst.unwrap_or_default();
        changes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LevelsView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A large or an old backlog is no reason to refuse submissions: it is what the ledger is for, and has a limit of
/// its own.
impl Pressure for SharedLevels {
    fn refuse(&self) -> Option<Retry> {
        let view = self.lock();
        let critical = |measure| {
            view.measures
                .get(&measure)
                .is_some_and(|shown| shown.level == Level::Critical)
        };
        let reason = if view.broker_blocked {
            "the broker takes no messages: it is short of memory or disk"
        } else if critical(Measure::Inbox) {
            "the coordinator has more to settle than it should"
        } else if critical(Measure::Depth) {
            "the work queues hold more than they should"
        } else {
            return None;
        };
        Some(Retry {
            reason: reason.to_owned(),
            after: RETRY_AFTER,
        })
    }
}

struct Measured {
    blocked: bool,
    values: [(Measure, Option<u64>); 4],
}

/// The stage.
pub struct LevelsStage {
    /// Thresholds.
    pub config: LevelsConfig,
    /// Knows how much is pending.
    pub ledger: Arc<dyn SubmissionLedger>,
    /// Knows since when.
    pub views: Arc<dyn OperatorViews>,
    /// How full the queues are.
    pub looks: Looks,
    /// Whose queue is a part of the inbox.
    pub notices: mpsc::Sender<Notice>,
    /// Where the answer is kept.
    pub levels: SharedLevels,
    /// Ends the stage.
    pub draining: CancellationToken,
}

impl LevelsStage {
    /// Measures until draining.
    pub async fn run(self) -> Result<(), Infallible> {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut was_blocked = false;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.draining.cancelled() => return Ok(()),
            }
            let measured = self.measure().await;
            if measured.blocked != was_blocked {
                was_blocked = measured.blocked;
                if was_blocked {
                    tracing::warn!("the broker takes no publishes: it is short of memory or disk");
                } else {
                    tracing::info!("the broker takes publishes again");
                }
            }
            for (measure, before, now) in self.levels.update(&self.config, &measured) {
                tell(measure, before, &now);
            }
            export(&self.levels.view());
        }
    }

    async fn measure(&self) -> Measured {
        let depths = self.looks.borrow().clone();
        let waiting = self.notices.max_capacity() - self.notices.capacity();
        let inbox = depths
            .as_ref()
            .map(|depths| ready(depths, OUTCOMES) + waiting as u64);
        let now = Timestamp::now();
        let backlog = known(self.ledger.backlog().await);
        let age = match known(self.views.oldest_due(now).await) {
            Some(Some(due)) => Some(u64::try_from(now.duration_since(due).as_secs()).unwrap_or(0)),
            Some(None) => Some(0),
            None => None,
        };
        Measured {
            blocked: depths.as_ref().is_some_and(|depths| depths.blocked),
            values: [
                (Measure::Inbox, inbox),
                (Measure::Backlog, backlog),
                (
                    Measure::Depth,
                    depths.as_ref().map(|depths| ready(depths, WORK)),
                ),
                (Measure::Age, age),
            ],
        }
    }
}

/// Messages that wait in all queues of an exchange.
fn ready(depths: &Depths, exchange: &str) -> u64 {
    let prefix = format!("{exchange}.");
    let of_exchange = |(name, depth): (&String, &Depth)| match depth {
        Depth::There { ready, .. } if name.starts_with(&prefix) => Some(u64::from(*ready)),
        _ => None,
    };
    depths.queues.iter().filter_map(of_exchange).sum()
}

fn known<T>(answer: Result<T, LedgerError>) -> Option<T> {
    answer
        .inspect_err(|error| tracing::debug!(%error, "a level cannot be measured"))
        .ok()
}

fn tell(measure: Measure, before: Level, now: &MeasureView) {
    let MeasureView {
        level,
        value,
        warn,
        critical,
    } = now;
    if *level > before {
        tracing::warn!(%measure, from = %before, to = %level, value, warn, critical, "a level rose");
    } else {
        tracing::info!(%measure, from = %before, to = %level, value, warn, critical, "a level fell");
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; what is counted here stays far below 2^52"
)]
fn export(view: &LevelsView) {
    for (measure, shown) in &view.measures {
        let name = measure.as_str();
        let level = match shown.level {
            Level::Ok => 0.0,
            Level::Warn => 1.0,
            Level::Critical => 2.0,
        };
        metrics::gauge!("tidegate_level", "measure" => name).set(level);
        if let Some(value) = shown.value {
            metrics::gauge!("tidegate_level_value", "measure" => name).set(value as f64);
        }
    }
    let blocked = if view.broker_blocked { 1.0 } else { 0.0 };
    metrics::gauge!("tidegate_broker_blocked").set(blocked);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(inbox: Option<u64>, age: u64, blocked: bool) -> Measured {
        Measured {
            blocked,
            values: [
                (Measure::Inbox, inbox),
                (Measure::Backlog, Some(1)),
                (Measure::Depth, Some(1)),
                (Measure::Age, Some(age)),
            ],
        }
    }

    #[test]
    fn changes_are_told_once_and_what_is_not_known_stays() {
        let (levels, config) = (SharedLevels::default(), LevelsConfig::default());
        assert!(
            levels
                .update(&config, &measured(Some(499), 0, false))
                .is_empty()
        );
        let changes = levels.update(&config, &measured(Some(800), 0, false));
        let shown: Vec<_> = changes
            .iter()
            .map(|(measure, before, now)| (*measure, *before, now.level))
            .collect();
        assert_eq!(shown, [(Measure::Inbox, Level::Ok, Level::Critical)]);
        assert!(levels.update(&config, &measured(None, 0, false)).is_empty());
        let view = levels.view();
        assert_eq!(view.level, Level::Critical);
        assert_eq!(view.measures[&Measure::Inbox].value, None);
    }

    #[test]
    fn submissions_are_refused_for_what_they_would_make_worse() {
        let (levels, config) = (SharedLevels::default(), LevelsConfig::default());
        assert_eq!(levels.refuse(), None);
        levels.update(&config, &measured(Some(0), 1_000_000, false));
        assert_eq!(levels.view().level, Level::Critical);
        assert_eq!(levels.refuse(), None, "an old backlog is no reason");
        levels.update(&config, &measured(Some(0), 0, true));
        assert!(levels.refuse().is_some(), "the broker is blocked");
        levels.update(&config, &measured(Some(800), 0, false));
        assert!(levels.refuse().is_some(), "the inbox is full");
        levels.update(&config, &measured(Some(0), 0, false));
        assert_eq!(levels.refuse(), None);
    }

    #[test]
    fn queues_are_counted_by_their_exchange() {
        let there = |ready| Depth::There {
            ready,
            consumers: 1,
        };
        let depths = Depths {
            queues: BTreeMap::from([
                ("tidegate.work.a.0".to_owned(), there(3)),
                ("tidegate.work.a.1".to_owned(), Depth::Missing),
                ("tidegate.outcomes.0".to_owned(), there(5)),
                ("tidegate.dead".to_owned(), there(7)),
            ]),
            blocked: false,
            at: std::time::Instant::now(),
        };
        assert_eq!((ready(&depths, WORK), ready(&depths, OUTCOMES)), (3, 5));
    }

    #[test]
    fn the_view_reads_well() {
        let (levels, config) = (SharedLevels::default(), LevelsConfig::default());
        levels.update(&config, &measured(Some(3), 0, false));
        let json = serde_json::to_value(levels.view()).unwrap();
        assert_eq!(json["measures"]["inbox"]["level"], "ok");
        assert_eq!(json["measures"]["inbox"]["warn"], 500);
        assert_eq!(json["broker_blocked"], false);
    }
}
