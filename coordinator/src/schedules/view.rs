//! Schedules as they are shown. Nobody waits for an answer: it is copied out of what the stage noted last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::config::{ScheduleConfig, ScheduleName};
use shared::id::RunId;
use shared::name::PipelineName;
use shared::timetable::Timetable;
use utoipa::ToSchema;

use super::memory::Remembered;

/// One schedule, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleView {
    /// Its name.
    #[schema(value_type = String)]
    pub schedule: ScheduleName,
    /// Its cron expression.
    pub cron: String,
    /// The time zone that the expression means.
    pub timezone: String,
    /// The pipeline of the batches that it submits.
    #[schema(value_type = String)]
    pub pipeline: PipelineName,
    /// Whether it fires.
    pub enabled: bool,
    /// When it fires next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// The last firing that was submitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Timestamp>,
    /// The run that it gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub last_run: Option<RunId>,
    /// Why the newest firing was not submitted, or not yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// All schedules: the stage notes, the API shows. The lock is held for a copy, never across an await.
#[derive(Debug, Clone, Default)]
pub struct Schedules(Arc<Mutex<BTreeMap<ScheduleName, Entry>>>);

#[derive(Debug)]
struct Entry {
    timetable: Timetable,
    pipeline: PipelineName,
    enabled: bool,
    memory: Option<Remembered>,
    problem: Option<String>,
}

impl Schedules {
    /// What is configured, before anything has fired.
    #[must_use]
    pub fn new(configured: &BTreeMap<ScheduleName, ScheduleConfig>) -> Self {
        let entry = |(name, schedule): (&ScheduleName, &ScheduleConfig)| {
            let entry = Entry {
                timetable: schedule.timetable.clone(),
                pipeline: schedule.pipeline.clone(),
                enabled: schedule.enabled,
                memory: None,
                problem: None,
            };
            (name.clone(), entry)
        };
        Self(Arc::new(Mutex::new(configured.iter().map(entry).collect())))
    }

    /// All of them, by name.
    #[must_use]
    pub fn views(&self, now: Timestamp) -> Vec<ScheduleView> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries
            .iter()
            .map(|(name, entry)| entry.view(name, now))
            .collect()
    }

    /// Notes where a schedule stands.
    pub(super) fn note(&self, name: &ScheduleName, memory: &Remembered, problem: Option<String>) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(name) {
            entry.memory = Some(memory.clone());
            entry.problem = problem;
        }
    }
}

impl Entry {
    fn view(&self, name: &ScheduleName, now: Timestamp) -> ScheduleView {
        let last = self.memory.as_ref().and_then(|memory| memory.last);
        ScheduleView {
            schedule: name.clone(),
            cron: self.timetable.cron().to_owned(),
            timezone: self.timetable.zone().to_owned(),
            pipeline: self.pipeline.clone(),
            enabled: self.enabled,
            next: self.timetable.next(now).filter(|_| self.enabled),
            last: last.map(|fired| fired.at),
            last_run: last.map(|fired| fired.run),
            problem: self.problem.clone(),
        }
    }
}
