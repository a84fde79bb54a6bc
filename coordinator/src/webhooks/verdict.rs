//! What a call came to. Pure: status, headers and the clock come in.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use shared::backoff::Backoff;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// With this status, and with what the receiver said about when to try again.
    Status(u16, Option<String>),
    /// Without an answer in time: no address, no connection, no status line.
    None(String),
    /// Not called at all: it is not allowed.
    Refused(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status, _) => write!(f, "status {status}"),
            Self::None(problem) | Self::Refused(problem) => f.write_str(problem),
        }
    }
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The receiver has it.
    Delivered,
    /// Try again after a while.
    Again(Duration),
    /// It would only fail again, or has failed too often.
    GiveUp,
}

/// How hard it is tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) max_attempts: u32,
    pub(super) backoff: Backoff,
    /// Longest delay, whatever the receiver asks for.
    pub(super) longest: Duration,
}

/// What a call came to that was the `failures` + 1st.
///
/// | answer | |
/// |---|---|
/// | 2xx | delivered |
/// | 408, 425, 429, 5xx, none | again, not before its `Retry-After`; given up after `max_attempts` |
/// | any other status, a redirect too; refused | given up |
pub(super) fn judge(
    answer: &Answer,
    failures: u32,
    patience: Patience,
    random: f64,
    now: Timestamp,
) -> Verdict {
    let asked = match answer {
        Answer::Status(200..=299, _) => return Verdict::Delivered,
        Answer::Status(408 | 425 | 429 | 500..=599, retry_after) => {
            retry_after.as_deref().and_then(|text| delay(text, now))
        }
        Answer::None(_) => None,
        Answer::Status(..) | Answer::Refused(_) => return Verdict::GiveUp,
    };
    let failures = failures + 1;
    if failures >= patience.max_attempts {
        return Verdict::GiveUp;
    }
    let own = patience.backoff.delay(failures, random);
    Verdict::Again(own.max(asked.unwrap_or_default()).min(patience.longest))
}

/// `Retry-After`: seconds, or a date.
fn delay(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::parse(text.trim()).ok()?.timestamp();
    Duration::try_from(at.duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);
    const PATIENCE: Patience = Patience {
        max_attempts: 4,
        backoff: Backoff::new(Duration::from_secs(5), Duration::from_hours(1)),
        longest: Duration::from_hours(1),
    };

    fn status(status: u16, retry_after: Option<&str>) -> Answer {
        Answer::Status(status, retry_after.map(str::to_owned))
    }

    fn judged(answer: &Answer, failures: u32) -> Verdict {
        judge(answer, failures, PATIENCE, 1.0, NOW)
    }

    #[test]
    fn every_status_has_its_meaning() {
        for code in 100..600 {
            let expected = match code {
                200..=299 => Verdict::Delivered,
                408 | 425 | 429 | 500..=599 => Verdict::Again(Duration::from_secs(5)),
                _ => Verdict::GiveUp,
            };
            assert_eq!(judged(&status(code, None), 0), expected, "{code}");
        }
        let again = Verdict::Again(Duration::from_secs(5));
        assert_eq!(judged(&Answer::None("reset".into()), 0), again);
        assert_eq!(
            judged(&Answer::Refused("private".into()), 0),
            Verdict::GiveUp
        );
    }

    #[test]
    fn tries_end() {
        let failing = status(500, None);
        let seconds = |s| Verdict::Again(Duration::from_secs(s));
        let verdicts: Vec<Verdict> = (0..5).map(|failures| judged(&failing, failures)).collect();
        let expected = [
            seconds(5),
            seconds(10),
            seconds(20),
            Verdict::GiveUp,
            Verdict::GiveUp,
        ];
        assert_eq!(verdicts, expected);
        assert_eq!(judged(&status(200, None), 99), Verdict::Delivered);
    }

    #[test]
    fn the_receiver_may_ask_for_more_time_but_not_for_ever() {
        let after = |text| judged(&status(429, Some(text)), 0);
        assert_eq!(after("90"), Verdict::Again(Duration::from_secs(90)));
        assert_eq!(after("1"), Verdict::Again(Duration::from_secs(5)));
        assert_eq!(
            after("Tue, 14 Nov 2023 22:15:20 GMT"),
            Verdict::Again(Duration::from_mins(2))
        );
        assert_eq!(
            after("Tue, 14 Nov 2000 22:15:20 GMT"),
            Verdict::Again(Duration::from_secs(5))
        );
        assert_eq!(
            after("18446744073709551615"),
            Verdict::Again(Duration::from_hours(1))
        );
        assert_eq!(after("soon"), Verdict::Again(Duration::from_secs(5)));
    }
}
