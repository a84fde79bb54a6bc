//! What a status means for the batch.
//!
//! | status | |
//! |---|---|
//! | 204, 205 | completed, without rows |
//! | other 2xx | completed: the body is the result |
//! | 429 | throttled, until `Retry-After`, else for 30 s |
//! | 503 with `Retry-After` | throttled until then |
//! | 408, 425, 5xx | retry, not before its `Retry-After` |
//! | 3xx | failed, reason `http_redirect` |
//! | other 4xx | failed, reason `http_404` and so on; `http_4xx` for the rare ones |
//!
//! `Retry-After` is seconds or a date; one that cannot be read, or is negative, is as good as none. It counts for
//! a day at most, and a throttled batch waits for a second at least.

use std::time::Duration;

use reqwest::StatusCode;

use crate::handler::HandlerError;
use crate::handlers::wire::{delay, throttle};

/// How long a receiver is left alone that says "too many" and not for how long.
const UNTOLD_THROTTLE: Duration = Duration::from_secs(30);

/// What a status means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Rows,
    NoRows,
    Error(HandlerError),
}

pub(super) fn meaning(status: StatusCode, asked: Option<Duration>) -> Meaning {
    let said = format!("answered with status {status}");
    Meaning::Error(match (status.as_u16(), asked) {
        (204 | 205, _) => return Meaning::NoRows,
        (200..=299, _) => return Meaning::Rows,
        (429, asked) => HandlerError::Throttled {
            reason: said,
            after: throttle(asked.unwrap_or(UNTOLD_THROTTLE)),
        },
        (503, Some(asked)) => HandlerError::Throttled {
            reason: said,
            after: throttle(asked),
        },
        (408 | 425 | 500..=599, asked) => HandlerError::Retry {
            error: said,
            after: asked.map(delay),
        },
        (code, _) => HandlerError::fail(reason(code), said),
    })
}

/// One closed word.
fn reason(code: u16) -> &'static str {
    match code {
        300..=399 => "http_redirect",
        400 => "http_400",
        401 => "http_401",
        403 => "http_403",
        404 => "http_404",
        405 => "http_405",
        409 => "http_409",
        410 => "http_410",
        413 => "http_413",
        415 => "http_415",
        422 => "http_422",
        _ if (400..500).contains(&code) => "http_4xx",
        _ => "http_status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: u16, asked: Option<u64>) -> Meaning {
        let status = StatusCode::from_u16(code).unwrap();
        meaning(status, asked.map(Duration::from_secs))
    }

    #[test]
    fn every_status_has_its_meaning() {
        for code in 100..1000 {
            let expected = match code {
                204 | 205 => "no rows",
                200..=299 => "rows",
                429 => "throttled",
                408 | 425 | 500..=599 => "retry",
                _ => "fail",
            };
            let meaning = match judged(code, None) {
                Meaning::Rows => "rows",
                Meaning::NoRows => "no rows",
                Meaning::Error(HandlerError::Throttled { .. }) => "throttled",
                Meaning::Error(HandlerError::Retry { error, after: None }) => {
                    assert!(error.contains(&code.to_string()));
                    "retry"
                }
                Meaning::Error(HandlerError::Retry { .. }) => "retry later",
                Meaning::Error(HandlerError::CoordinatorAway) => "away",
                Meaning::Error(HandlerError::Fail { reason, .. }) => {
                    assert!(reason.starts_with("http_"), "{code}: {reason}");
                    "fail"
                }
            };
            assert_eq!(meaning, expected, "{code}");
        }
    }

    #[test]
    fn a_wish_for_a_delay_is_granted_within_limits() {
        let throttled = |code, asked| match judged(code, asked) {
            Meaning::Error(HandlerError::Throttled { after, .. }) => after.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!(throttled(429, None), 30);
        assert_eq!(throttled(429, Some(0)), 1);
        assert_eq!(throttled(429, Some(7)), 7);
        assert_eq!(throttled(503, Some(1_000_000_000)), 24 * 60 * 60);
        let asked = Meaning::Error(HandlerError::Retry {
            error: "answered with status 500 Internal Server Error".into(),
            after: Some(Duration::from_secs(9)),
        });
        assert_eq!(judged(500, Some(9)), asked);
    }
}
