//! `[schedules.<name>]`: what is submitted by itself, and when.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Span};
use crate::name::{Key, PipelineName};
use crate::payload;
use crate::search_console::{
    Days, DimensionSet, MAX_DAYS, PLAN_PIPELINE, SearchType, Sync, normalize_property,
};
use crate::timetable::Timetable;

/// Longest accepted name, in bytes: it stands in idempotency keys and metric labels.
const MAX_NAME_BYTES: usize = 100;
/// Most schedules: each is a task of the coordinator.
const MAX_SCHEDULES: usize = 1_000;
/// Days of a scheduled sync when nobody says otherwise. A sync fetches what is missing and what Google may
/// still revise, so that a month closes the gaps of any outage that is noticed in time, and costs little more.
const SYNC_DAYS: u32 = 30;

/// The name of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScheduleName(String);

/// A run that is submitted again and again, checked. The coordinator reads it.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Written")]
pub struct ScheduleConfig {
    /// When: `cron` (five fields, or six with seconds first) in `timezone` (default `UTC`; any IANA name).
    pub timetable: Timetable,
    /// The pipeline of the batches; `gsc.plan` when they are a `search_console` sync.
    pub pipeline: PipelineName,
    /// What is submitted each time: NDJSON, a batch a line, from `batches` or `search_console`.
    pub lines: String,
    /// Which of a key's runs goes first. Default `normal`.
    pub priority: SchedulePriority,
    /// What happens to firings that came more than `grace` ago, because no coordinator ran. Default `skip`.
    pub missed: Missed,
    /// How late a firing may be submitted and still counts as in time (up to 1 h). Default 1 min: a restart
    /// skips nothing.
    pub grace: Span,
    /// Whom to tell when a run has finished, as in a submission. Default: nobody.
    pub webhook: Option<String>,
    /// `false`: it does not fire. What would have fired meanwhile is not missed. Default `true`.
    pub enabled: bool,
}

/// Which of a key's runs goes first, as in a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulePriority {
    /// After the others.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before the others.
    High,
}

/// What happens to firings that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Nothing: the next one is the next one.
    #[default]
    Skip,
    /// The latest of them is submitted, however late it is; the ones before it are not.
    CatchUp,
}

impl ScheduleConfig {
    /// Each second of it may be a firing that is submitted after a restart.
    const MAX_GRACE: Span = Span::seconds(60 * 60);

    /// What needs to know the other sections.
    pub(super) fn check(
        &self,
        name: &ScheduleName,
        is_configured: impl Fn(&PipelineName) -> bool,
    ) -> Result<(), ConfigError> {
        if is_configured(&self.pipeline) {
            return Ok(());
        }
        Err(ConfigError::wrong(
            format!("schedules.{name}.pipeline"),
            format!("names {}, which is not configured", self.pipeline),
        ))
    }

    pub(super) fn check_count(count: usize) -> Result<(), ConfigError> {
        if count > MAX_SCHEDULES {
            let problem = format!("are {count}, at most {MAX_SCHEDULES} are allowed");
            return Err(ConfigError::wrong("schedules", problem));
        }
        Ok(())
    }
}

/// A schedule as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    cron: String,
    #[serde(default = "utc")]
    timezone: String,
    pipeline: Option<PipelineName>,
    #[serde(default)]
    batches: Vec<WrittenBatch>,
    search_console: Option<WrittenSync>,
    #[serde(default)]
    priority: SchedulePriority,
    #[serde(default)]
    missed: Missed,
    #[serde(default = "minute")]
    grace: Span,
    webhook: Option<String>,
    #[serde(default = "yes")]
    enabled: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenBatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
    payload: serde_json::Value,
}

/// `search_console = { properties = […], days = 30, types = […], dimensions = […], refetch = false }`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSync {
    properties: Vec<String>,
    #[serde(default = "sync_days")]
    days: u32,
    #[serde(default)]
    types: Vec<SearchType>,
    #[serde(default)]
    dimensions: Vec<DimensionSet>,
    #[serde(default)]
    refetch: bool,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn minute() -> Span {
    Span::seconds(60)
}

fn yes() -> bool {
    true
}

fn sync_days() -> u32 {
    SYNC_DAYS
}

impl TryFrom<Written> for ScheduleConfig {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let (pipeline, lines) = match (written.search_console, written.pipeline) {
            (Some(_), Some(_)) => {
                return Err(
                    "has both pipeline and search_console: a sync has its own pipeline".into(),
                );
            }
            (Some(_), None) if !written.batches.is_empty() => {
                return Err("has both batches and search_console: make two schedules".into());
            }
            (Some(sync), None) => {
                let plan =
                    PipelineName::new(PLAN_PIPELINE).expect("a built-in name is well-formed");
                (
                    plan,
                    sync.lines()
                        .map_err(|problem| format!("search_console: {problem}"))?,
                )
            }
            (None, Some(pipeline)) => (pipeline, batch_lines(&written.batches)?),
            (None, None) => {
                return Err(
                    "submits nothing: name a pipeline and batches, or search_console".into(),
                );
            }
        };
        if written.grace > Self::MAX_GRACE {
            let (grace, most) = (written.grace, Self::MAX_GRACE);
            return Err(format!("grace: must be at most {most}, is {grace}"));
        }
        Ok(Self {
            timetable: Timetable::new(&written.cron, &written.timezone)
                .map_err(|e| e.to_string())?,
            pipeline,
            lines,
            priority: written.priority,
            missed: written.missed,
            grace: written.grace,
            webhook: written.webhook,
            enabled: written.enabled,
        })
    }
}

fn batch_lines(batches: &[WrittenBatch]) -> Result<String, String> {
    if batches.is_empty() {
        return Err(
            "batches: is missing or empty: write batches = [{ key = \"…\", payload = … }]".into(),
        );
    }
    let mut lines = String::new();
    for (number, batch) in batches.iter().enumerate() {
        let payload = serde_json::value::to_raw_value(&batch.payload).map_err(|e| e.to_string())?;
        payload::check(&payload).map_err(|problem| format!("batches[{number}]: {problem}"))?;
        lines.push_str(&serde_json::to_string(batch).map_err(|e| e.to_string())?);
        lines.push('\n');
    }
    Ok(lines)
}

impl WrittenSync {
    fn lines(self) -> Result<String, String> {
        if self.properties.is_empty() {
            return Err(
                "properties: is empty: write properties = [\"sc-domain:example.com\"]".into(),
            );
        }
        if self.days == 0 || self.days > MAX_DAYS {
            return Err(format!("days: must be 1 to {MAX_DAYS}, is {}", self.days));
        }
        let properties = self
            .properties
            .iter()
            .map(|written| normalize_property(written));
        let sync = Sync {
            properties: properties
                .collect::<Result<_, _>>()
                .map_err(|e| e.to_string())?,
            days: Days::Last(self.days),
            types: self.types,
            dimensions: self.dimensions,
            refetch: self.refetch,
        };
        sync.lines().map_err(|error| error.to_string())
    }
}

impl ScheduleName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ScheduleName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
        if !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.chars().all(allowed) {
            return Ok(Self(name));
        }
        Err(format!(
            "is no name of a schedule: write a-z, 0-9, '_', '-' or '.', at most {MAX_NAME_BYTES} bytes"
        ))
    }
}

impl From<ScheduleName> for String {
    fn from(name: ScheduleName) -> Self {
        name.0
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{problem, read};
    use super::*;

    fn schedule(toml: &str) -> ScheduleConfig {
        let pipelines = "[pipelines.a]\nhandler = \"noop\"\n";
        let config = read(&format!("{pipelines}[schedules.nightly]\n{toml}")).unwrap();
        config.schedules.into_values().next().unwrap()
    }

    #[test]
    fn batches_become_lines() {
        let schedule = schedule(
            "cron = \"@daily\"\npipeline = \"a\"\n\
             batches = [{ key = \"k\", payload = { x = [1, \"ä\"] } }, { payload = true }]",
        );
        let expected = "{\"key\":\"k\",\"payload\":{\"x\":[1,\"ä\"]}}\n{\"payload\":true}\n";
        assert_eq!(schedule.lines, expected);
        assert_eq!(schedule.timetable.zone(), "UTC");
        assert_eq!((schedule.missed, schedule.enabled), (Missed::Skip, true));
    }

    #[test]
    fn a_scheduled_sync_is_the_one_that_is_typed() {
        let schedule = schedule(
            "cron = \"30 4 * * *\"\ntimezone = \"America/Los_Angeles\"\nmissed = \"catch_up\"\npriority = \"low\"\n\
             search_console = { properties = [\"sc-domain:a.example\", \"https://B.example\"], days = 10, \
             types = [\"web\"], dimensions = [\"page,query\"] }",
        );
        let rest = r#""days":{"last":10},"types":["web"],"dimensions":["page,query"]}}"#;
        let line =
            |p: &str| format!("{{\"key\":\"{p}\",\"payload\":{{\"property\":\"{p}\",{rest}\n");
        let expected = [line("sc-domain:a.example"), line("https://b.example/")].concat();
        assert_eq!(schedule.lines, expected);
        assert_eq!(schedule.pipeline.as_str(), PLAN_PIPELINE);
        assert_eq!(
            (schedule.missed, schedule.priority),
            (Missed::CatchUp, SchedulePriority::Low)
        );
    }

    #[test]
    fn wrong_schedules_say_what_would_be_right() {
        let sync = "search_console = { properties = [\"sc-domain:a.example\"] }";
        let cases = [
            ("", "cron"),
            ("cron = \"@daily\"", "submits nothing"),
            (
                "cron = \"* * * *\"\npipeline = \"gsc.plan\"\nbatches = [{ payload = 1 }]",
                "30 4 * * *",
            ),
            (
                &format!("cron = \"@daily\"\ntimezone = \"PT\"\n{sync}"),
                "America/Los_Angeles",
            ),
            (&format!("cron = \"0 0 30 2 *\"\n{sync}"), "never fires"),
            (
                &format!("cron = \"@daily\"\ngrace = \"2h\"\n{sync}"),
                "at most",
            ),
            (
                &format!("cron = \"@daily\"\nmissed = \"later\"\n{sync}"),
                "catch_up",
            ),
            (
                &format!("cron = \"@daily\"\ntimezon = \"UTC\"\n{sync}"),
                "did you mean \"timezone\"",
            ),
            (
                &format!("cron = \"@daily\"\npipeline = \"gsc.plan\"\n{sync}"),
                "own pipeline",
            ),
            (
                &format!("cron = \"@daily\"\nbatches = [{{ payload = 1 }}]\n{sync}"),
                "two schedules",
            ),
            ("cron = \"@daily\"\npipeline = \"gsc.plan\"", "batches"),
            (
                "cron = \"@daily\"\npipeline = \"b\"\nbatches = [{ payload = 1 }]",
                "not configured",
            ),
            (
                "cron = \"@daily\"\npipeline = \"gsc.plan\"\nbatches = [{ payload = \"\\u0000\" }]",
                "NUL",
            ),
            (
                "cron = \"@daily\"\npipeline = \"gsc.plan\"\nbatches = [{ key = \"\", payload = 1 }]",
                "key",
            ),
            (
                "cron = \"@daily\"\nsearch_console = { properties = [] }",
                "properties",
            ),
            (
                "cron = \"@daily\"\nsearch_console = { properties = [\"a.example\"] }",
                "sc-domain:a.example",
            ),
            (
                "cron = \"@daily\"\nsearch_console = { properties = [\"sc-domain:a.example\"], days = 0 }",
                "1 to 3660",
            ),
        ];
        for (toml, expected) in cases {
            let problem = problem(&format!("[schedules.nightly]\n{toml}"));
            assert!(problem.contains(expected), "{toml}: {problem}");
            assert!(
                problem.contains("schedules") || problem.contains("unknown key"),
                "{problem}"
            );
        }
        let name = problem(&format!(
            "[schedules.\"Nightly run\"]\ncron = \"@daily\"\n{sync}"
        ));
        assert!(name.contains("no name of a schedule"), "{name}");
    }
}
