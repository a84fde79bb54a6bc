//! What must survive a restart of a schedule: the time up to which it was looked after.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::config::ScheduleConfig;
use shared::id::RunId;

/// What is remembered of a schedule, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// By which timetable it was looked after; `None`: it was switched off.
    timetable: Option<String>,
    /// Every firing up to then was submitted, skipped or given up.
    pub(super) looked_after: Timestamp,
    /// The last firing that was submitted.
    pub(super) last: Option<Fired>,
}

/// A firing that was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Fired {
    /// When it was due.
    pub(super) at: Timestamp,
    /// The run that it gave.
    pub(super) run: RunId,
}

impl Remembered {
    /// What a coordinator that starts now goes on from. A schedule that is new, that has another timetable
    /// or was switched off before has missed nothing.
    pub(super) fn resume(schedule: &ScheduleConfig, stored: Option<&str>, now: Timestamp) -> Self {
        let stored = stored.and_then(|json| match serde_json::from_str::<Self>(json) {
            Ok(stored) => Some(stored),
            Err(error) => {
                tracing::error!(%error, "what was remembered of a schedule cannot be read, it starts anew");
                None
            }
        });
        let timetable = schedule.enabled.then(|| schedule.timetable.to_string());
        match stored {
            Some(stored) if stored.timetable.is_some() && stored.timetable == timetable => stored,
            other => Self {
                timetable,
                looked_after: now,
                last: other.and_then(|other| other.last),
            },
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("times and ids serialise")
    }
}
