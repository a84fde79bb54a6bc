//! What a program outside is told about a batch, in a line or in a request's body, and how much it may ask for
//! in its answer.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::{Key, PipelineName};
use shared::outcome::Statistics;

use crate::handler::BatchContext;

/// Longest delay that a program may ask for: a mistaken unit costs a day.
const MAX_DELAY: Duration = Duration::from_hours(24);
/// Shortest delay of a throttled batch. It burns no attempt, so without a pause it could go round for ever.
const MIN_THROTTLE: Duration = Duration::from_secs(1);
/// Most statistics of a batch: a run sums up each name.
const MAX_STATISTICS: usize = 100;
/// Longest name of a statistic, in bytes.
const MAX_STATISTIC_BYTES: usize = 100;

/// A batch, as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    batch: BatchId,
    run: RunId,
    pipeline: &'a PipelineName,
    key: &'a Key,
    attempt: u32,
    /// How long an answer is waited for, from now: a span, because clocks differ.
    deadline_ms: u64,
    /// How far an earlier attempt came, if it said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'a RawValue>,
    payload: &'a RawValue,
}

impl<'a> Request<'a> {
    pub(super) fn new(ctx: &'a BatchContext) -> Self {
        let left = ctx.deadline.saturating_duration_since(Instant::now());
        Self {
            batch: ctx.batch.id,
            run: ctx.batch.run,
            pipeline: &ctx.batch.pipeline,
            key: &ctx.batch.key,
            attempt: ctx.batch.attempt.number(),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            cursor: ctx.saved.found(),
            payload: &ctx.batch.payload,
        }
    }

    /// As JSON that may span lines, as the payload does.
    pub(super) fn into_json(self) -> String {
        serde_json::to_string(&self).expect("names, numbers and JSON serialise")
    }

    /// As JSON on one line, line break included.
    pub(super) fn into_line(self) -> String {
        let mut line = one_line(&self.into_json());
        line.push('\n');
        line
    }
}

/// In valid JSON, a bare line break is only ever white space.
pub(crate) fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

/// A delay that was asked for, within limits.
pub(super) fn delay(asked: Duration) -> Duration {
    asked.min(MAX_DELAY)
}

/// The same for a throttled batch.
pub(super) fn throttle(asked: Duration) -> Duration {
    delay(asked).max(MIN_THROTTLE)
}

/// Whether a run can sum these up.
pub(super) fn check_statistics(statistics: &Statistics) -> Result<(), String> {
    if statistics.len() > MAX_STATISTICS {
        return Err(format!(
            "has {} statistics, at most {MAX_STATISTICS} are allowed",
            statistics.len()
        ));
    }
    let unusable = |name: &&String| {
        name.is_empty() || name.len() > MAX_STATISTIC_BYTES || name.contains(char::is_control)
    };
    match statistics.keys().find(unusable) {
        Some(name) => Err(format!(
            "names a statistic {name:.100?}: use 1 to {MAX_STATISTIC_BYTES} bytes without control characters"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_bounded() {
        assert_eq!(delay(Duration::ZERO), Duration::ZERO);
        assert_eq!(delay(Duration::MAX), MAX_DELAY);
        assert_eq!(throttle(Duration::ZERO), MIN_THROTTLE);
        assert_eq!(throttle(Duration::MAX), MAX_DELAY);
        assert_eq!(throttle(Duration::from_secs(7)), Duration::from_secs(7));
    }

    #[test]
    fn statistics_are_bounded() {
        let check = |names: &[String]| {
            check_statistics(&names.iter().map(|name| (name.clone(), 1)).collect())
        };
        let names: Vec<String> = (0..=MAX_STATISTICS).map(|n| n.to_string()).collect();
        assert_eq!(check(&names[1..]), Ok(()));
        assert!(check(&names).unwrap_err().contains("101"));
        for unusable in [String::new(), "a\0".to_owned(), "x".repeat(101)] {
            assert!(check(&[unusable]).is_err());
        }
    }
}
