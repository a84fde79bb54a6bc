//! `Retry-After`: seconds, or a date.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;

/// How long the receiver wants to be left alone; none if that cannot be read. Not bounded yet.
pub(super) fn delay(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // What does not fit is very long.
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let at = rfc2822::parse(text).ok()?.timestamp();
    // A date that has passed means now.
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_nonsense_is_not() {
        let now: Timestamp = "2026-02-03T04:05:06Z".parse().unwrap();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let cases = [
            ("0", seconds(0)),
            ("120", seconds(120)),
            (" 7 ", seconds(7)),
            ("1000000000", seconds(1_000_000_000)),
            ("99999999999999999999999", Some(Duration::MAX)),
            ("Tue, 03 Feb 2026 04:06:06 GMT", seconds(60)),
            ("Tue, 03 Feb 2026 04:05:05 GMT", seconds(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", seconds(0)),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(delay(text, now), expected, "{text:?}");
        }
    }
}
