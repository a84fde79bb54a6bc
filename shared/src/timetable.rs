//! When a schedule fires: a cron expression in a time zone. Pure: asked about a time, it names another one.
//!
//! Clocks that are put forward or back change nothing about how often something fires. A time of day that
//! does not exist fires once, at the moment at which the clock goes on; one that exists twice fires once, at
//! the first. A schedule of every hour (its hour field allows all 24) follows real time instead: it
//! fires in both of the hours of the same name, and has nothing to make up for in the one that is missing.

use std::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, civil};

/// From here on it is tried whether an expression ever fires. 400 years have the same calendar as the next 400.
const SOME_DAY: civil::DateTime = civil::date(2000, 1, 1).at(0, 0, 0, 0);
/// An hour field that allows this many hours is "every hour".
const HOURS_A_DAY: usize = 24;

/// Times at which something fires.
#[derive(Debug, Clone)]
pub struct Timetable {
    cron: Cron,
    text: String,
    zone: TimeZone,
    zone_name: String,
    every_hour: bool,
}

/// Why something is no timetable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimetableError {
    /// Not an expression that cron would read.
    #[error(
        "{text:?} is no cron expression ({problem}): write minute, hour, day of month, month and day of week, \
         such as \"30 4 * * *\"; six fields begin with the second"
    )]
    Cron {
        /// As written.
        text: String,
        /// The parser's words.
        problem: String,
    },
    /// A day such as 30 February.
    #[error("{0:?} never fires: there is no such day")]
    Never(String),
    /// Not in the IANA database.
    #[error(
        "{0:?} is no time zone: write UTC, or a name such as America/Los_Angeles or Europe/Berlin"
    )]
    Zone(String),
}

impl Timetable {
    /// Reads an expression (five fields, or six with seconds first, or `@daily` and the like) and the name of
    /// an IANA time zone.
    pub fn new(cron: &str, zone: &str) -> Result<Self, TimetableError> {
        let parser = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build();
        let parsed = parser.parse(cron).map_err(|error| TimetableError::Cron {
            text: cron.to_owned(),
            problem: error.to_string().trim_end_matches('.').to_owned(),
        })?;
        if parsed.find_next_occurrence(&SOME_DAY, true).is_err() {
            return Err(TimetableError::Never(cron.to_owned()));
        }
        Ok(Self {
            every_hour: parsed.pattern.hours.values().len() == HOURS_A_DAY,
            cron: parsed,
            text: cron.trim().to_owned(),
            zone: TimeZone::get(zone).map_err(|_| TimetableError::Zone(zone.to_owned()))?,
            zone_name: zone.to_owned(),
        })
    }

    /// The expression.
    #[must_use]
    pub fn cron(&self) -> &str {
        &self.text
    }

    /// The time zone's name.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.zone_name
    }

    /// The first firing after a time. `None` only at the end of time.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        if self.every_hour {
            let from = after.to_zoned(self.zone.clone());
            let next = self.cron.find_next_occurrence(&from, false).ok()?;
            return Some(next.timestamp());
        }
        let mut local = self.zone.to_datetime(after);
        loop {
            local = self.cron.find_next_occurrence(&local, false).ok()?;
            let fires = self.instant(local)?;
            // In the second of two hours of the same name: what comes next there has fired in the first.
            if fires > after {
                return Some(fires);
            }
        }
    }

    /// The last firing after one time and not after another. Takes the same few steps for a minute and
    /// for a century.
    #[must_use]
    pub fn latest(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let next_before_end = |seconds| {
            let from = after.checked_add(SignedDuration::from_secs(seconds)).ok()?;
            self.next(from).filter(|fires| *fires <= until)
        };
        let mut latest = next_before_end(0)?;
        // The later one asks, the later the answer: halve until there is no later one.
        let (mut some, mut none) = (0, until.duration_since(after).as_secs() + 1);
        while none - some > 1 {
            let middle = some + (none - some) / 2;
            match next_before_end(middle) {
                Some(fires) => (latest, some) = (fires, middle),
                None => none = middle,
            }
        }
        Some(latest)
    }

    /// When a local time comes: at the first of two, or at the end of the gap that it falls into.
    fn instant(&self, local: civil::DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(local);
        if !matches!(ambiguous.offset(), AmbiguousOffset::Gap { .. }) {
            return ambiguous.earlier().ok();
        }
        // As if the clock had not been changed: at or after the change, which is what is looked for.
        let after = ambiguous.compatible().ok()?;
        let change = self
            .zone
            .preceding(after + SignedDuration::from_secs(1))
            .next()?;
        Some(change.timestamp())
    }
}

impl fmt::Display for Timetable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.text, self.zone_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACIFIC: &str = "America/Los_Angeles";

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The firings of a timetable after one time and not after another, in UTC.
    fn firings(cron: &str, zone: &str, after: &str, until: &str) -> Vec<String> {
        let timetable = Timetable::new(cron, zone).unwrap();
        let mut found = Vec::new();
        let mut at = time(after);
        while let Some(next) = timetable.next(at).filter(|next| *next <= time(until)) {
            assert!(next > at, "{next} after {at}");
            found.push(next.to_string());
            at = next;
        }
        let latest = timetable.latest(time(after), time(until));
        assert_eq!(latest.map(|t| t.to_string()).as_ref(), found.last());
        found
    }

    #[test]
    fn fires_by_the_clock_of_its_zone() {
        let fired = firings(
            "30 4 * * *",
            PACIFIC,
            "2026-01-01T00:00:00Z",
            "2026-01-03T00:00:00Z",
        );
        assert_eq!(fired, ["2026-01-01T12:30:00Z", "2026-01-02T12:30:00Z"]);
        let fired = firings(
            "30 4 * * *",
            PACIFIC,
            "2026-07-01T00:00:00Z",
            "2026-07-02T00:00:00Z",
        );
        assert_eq!(fired, ["2026-07-01T11:30:00Z"]);
        let fired = firings(
            "*/20 * * * * *",
            "UTC",
            "2026-01-01T00:00:00.9Z",
            "2026-01-01T00:01:00Z",
        );
        let expected = [
            "2026-01-01T00:00:20Z",
            "2026-01-01T00:00:40Z",
            "2026-01-01T00:01:00Z",
        ];
        assert_eq!(fired, expected);
    }

    #[test]
    fn a_firing_at_the_very_moment_counts_as_past() {
        let fired = firings(
            "0 0 * * *",
            "UTC",
            "2026-01-01T00:00:00Z",
            "2026-01-02T00:00:00Z",
        );
        assert_eq!(fired, ["2026-01-02T00:00:00Z"]);
    }

    /// On 8 March 2026, California's clocks went from 02:00 to 03:00, which is 10:00 UTC.
    #[test]
    fn a_time_that_does_not_exist_fires_once_right_after() {
        let spring = |cron| {
            firings(
                cron,
                PACIFIC,
                "2026-03-08T08:00:00Z",
                "2026-03-09T06:00:00Z",
            )
        };
        assert_eq!(spring("30 2 * * *"), ["2026-03-08T10:00:00Z"]);
        assert_eq!(spring("0 2 * * *"), ["2026-03-08T10:00:00Z"]);
        // Several that do not exist, and one that falls on the change itself, are one.
        assert_eq!(spring("*/20 2 * * *"), ["2026-03-08T10:00:00Z"]);
        assert_eq!(spring("0 2,3 * * *"), ["2026-03-08T10:00:00Z"]);
        let around = [
            "2026-03-08T09:30:00Z",
            "2026-03-08T10:00:00Z",
            "2026-03-08T10:30:00Z",
        ];
        assert_eq!(spring("30 1,2,3 * * *"), around);
        assert_eq!(
            spring("30 2,14 * * *"),
            ["2026-03-08T10:00:00Z", "2026-03-08T21:30:00Z"]
        );
    }

    /// On 1 November 2026, they go from 02:00 back to 01:00: 01:30 is at 08:30 and at 09:30 UTC.
    #[test]
    fn a_time_that_exists_twice_fires_once() {
        let autumn = |cron| {
            firings(
                cron,
                PACIFIC,
                "2026-11-01T07:00:00Z",
                "2026-11-02T07:00:00Z",
            )
        };
        assert_eq!(autumn("30 1 * * *"), ["2026-11-01T08:30:00Z"]);
        let twice = [
            "2026-11-01T08:15:00Z",
            "2026-11-01T08:45:00Z",
            "2026-11-01T10:15:00Z",
        ];
        assert_eq!(autumn("15,45 1,2 * * *")[..3], twice);
        // Asked in the second of the two hours.
        let timetable = Timetable::new("30 1 * * *", PACIFIC).unwrap();
        let next = timetable.next(time("2026-11-01T09:05:00Z")).unwrap();
        assert_eq!(next, time("2026-11-02T09:30:00Z"));
    }

    #[test]
    fn every_hour_is_every_real_hour() {
        let autumn = firings(
            "30 * * * *",
            PACIFIC,
            "2026-11-01T07:50:00Z",
            "2026-11-01T11:00:00Z",
        );
        let expected = [
            "2026-11-01T08:30:00Z",
            "2026-11-01T09:30:00Z",
            "2026-11-01T10:30:00Z",
        ];
        assert_eq!(autumn, expected);
        let spring = firings(
            "30 * * * *",
            PACIFIC,
            "2026-03-08T09:00:00Z",
            "2026-03-08T11:00:00Z",
        );
        assert_eq!(spring, ["2026-03-08T09:30:00Z", "2026-03-08T10:30:00Z"]);
    }

    #[test]
    fn odd_changes_of_the_clock() {
        // Half an hour, from 02:00 to 02:30.
        let lord_howe = firings(
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-03T12:00:00Z",
            "2026-10-04T12:00:00Z",
        );
        assert_eq!(lord_howe, ["2026-10-03T15:30:00Z"]);
        // Two hours, from 01:00 to 03:00.
        let troll = firings(
            "30 1 * * *",
            "Antarctica/Troll",
            "2026-03-28T12:00:00Z",
            "2026-03-29T12:00:00Z",
        );
        assert_eq!(troll, ["2026-03-29T01:00:00Z"]);
        // A whole day, 30 December 2011, was left out.
        let apia = firings(
            "0 12 * * *",
            "Pacific/Apia",
            "2011-12-29T12:00:00Z",
            "2011-12-31T12:00:00Z",
        );
        assert_eq!(
            apia,
            [
                "2011-12-29T22:00:00Z",
                "2011-12-30T10:00:00Z",
                "2011-12-30T22:00:00Z"
            ]
        );
    }

    #[test]
    fn leap_days_and_ends_of_months() {
        let leap = firings(
            "0 0 29 2 *",
            "UTC",
            "2026-01-01T00:00:00Z",
            "2033-01-01T00:00:00Z",
        );
        assert_eq!(leap, ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]);
        let last = firings(
            "0 0 L 2 *",
            "UTC",
            "2027-01-01T00:00:00Z",
            "2029-01-01T00:00:00Z",
        );
        assert_eq!(last, ["2027-02-28T00:00:00Z", "2028-02-29T00:00:00Z"]);
        assert_eq!(Timetable::new("0 0 29 2 1", "UTC").err(), None);
    }

    #[test]
    fn the_latest_of_very_many_is_found_at_once() {
        let timetable = Timetable::new("* * * * * *", PACIFIC).unwrap();
        let (from, to) = (time("1990-01-01T00:00:00Z"), time("2026-07-01T12:34:56.7Z"));
        assert_eq!(
            timetable.latest(from, to),
            Some(time("2026-07-01T12:34:56Z"))
        );
        assert_eq!(timetable.latest(to, from), None);
        assert_eq!(timetable.latest(from, from), None);
    }

    #[test]
    fn what_never_fires_or_is_no_time_is_refused() {
        for never in ["0 0 30 2 *", "0 0 31 4,6 *"] {
            let error = Timetable::new(never, "UTC").unwrap_err();
            assert!(
                matches!(error, TimetableError::Never(_)),
                "{never}: {error}"
            );
        }
        for odd in [
            "",
            "* * * *",
            "60 * * * *",
            "* * * * * * 2027",
            "@often",
            "five o'clock",
            "0 0 32 * *",
        ] {
            let error = Timetable::new(odd, "UTC").unwrap_err();
            assert!(
                matches!(error, TimetableError::Cron { .. }),
                "{odd}: {error}"
            );
        }
        for zone in ["", "Pacific", "PST8", "America/Los Angeles", "+08:00"] {
            let error = Timetable::new("@daily", zone).unwrap_err();
            assert_eq!(error, TimetableError::Zone(zone.to_owned()));
        }
    }
}
