//! Days as Search Console counts them: Pacific dates, from a clock that tests can set.

use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

/// Final data is this many days old (Google: "2–3 days").
pub(super) const FINAL_AFTER_DAYS: i64 = 3;
/// How far back Google keeps data: about 16 months.
pub(super) const HISTORY_DAYS: i64 = 486;
/// An empty answer for a day this young may still fill.
const EMPTY_IS_PROVISIONAL_DAYS: i64 = 10;

/// Which day it is in California.
#[derive(Debug, Clone)]
pub(super) struct Calendar {
    /// Replaces the clock when "today" is computed.
    fixed: Option<Timestamp>,
    pacific: TimeZone,
}

impl Calendar {
    pub(super) fn new(fixed: Option<Timestamp>) -> Self {
        // The compiled-in database, so that a container without time zones counts the same days.
        let pacific = TimeZoneDatabase::bundled()
            .get("America/Los_Angeles")
            .expect("the time zone database is compiled in");
        Self { fixed, pacific }
    }

    /// Today in Pacific time.
    pub(super) fn today(&self) -> Date {
        self.fixed
            .unwrap_or_else(Timestamp::now)
            .to_zoned(self.pacific.clone())
            .date()
    }

    /// When the Pacific day after `now` begins: quotas count from there. Quotas follow real time, so
    /// `now` is the caller's, never the one that replaces "today".
    pub(super) fn next_midnight(&self, now: Timestamp) -> Timestamp {
        let tomorrow = now.to_zoned(self.pacific.clone()).date().tomorrow();
        let midnight = tomorrow.and_then(|day| day.to_zoned(self.pacific.clone()));
        midnight.map_or(Timestamp::MAX, |midnight| midnight.timestamp())
    }
}

/// The last day that can be final: three days back, or the day before the first that Google calls
/// incomplete, whichever is earlier. Google's word alone is not taken, because it is not documented
/// that every day before it is final.
pub(super) fn last_final_day(today: Date, first_incomplete: Option<Date>) -> Date {
    let by_age = days_before(today, FINAL_AFTER_DAYS);
    first_incomplete.map_or(by_age, |day| by_age.min(days_before(day, 1)))
}

/// Whether a slice that was fetched as final data needs no second look, but for late revisions.
pub(super) fn is_final(
    date: Date,
    today: Date,
    first_incomplete: Option<Date>,
    is_empty: bool,
) -> bool {
    let may_still_fill = is_empty && date > days_before(today, EMPTY_IS_PROVISIONAL_DAYS);
    date <= last_final_day(today, first_incomplete) && !may_still_fill
}

/// The day so many days earlier.
pub(super) fn days_before(date: Date, days: i64) -> Date {
    date.saturating_sub(SignedDuration::from_hours(24 * days))
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn today_is_a_pacific_day_in_winter_and_summer() {
        let today = |text: &str| Calendar::new(Some(text.parse().unwrap())).today();
        assert_eq!(today("2026-03-01T07:59:59Z"), date(2026, 2, 28));
        assert_eq!(today("2026-03-01T08:00:00Z"), date(2026, 3, 1));
        assert_eq!(today("2026-07-01T06:59:59Z"), date(2026, 6, 30));
        assert_eq!(today("2026-07-01T07:00:00Z"), date(2026, 7, 1));
    }

    #[test]
    fn midnight_respects_daylight_saving() {
        let midnight = |text: &str| {
            Calendar::new(None)
                .next_midnight(text.parse().unwrap())
                .to_string()
        };
        assert_eq!(midnight("2026-03-08T09:00:00Z"), "2026-03-09T07:00:00Z");
        assert_eq!(midnight("2026-11-01T07:30:00Z"), "2026-11-02T08:00:00Z");
    }

    #[test]
    fn a_slice_is_final_only_when_both_tests_agree() {
        let today = date(2026, 3, 1);
        let day = |d| date(2026, 2, d);
        assert!(is_final(day(26), today, None, false));
        assert!(!is_final(day(27), today, None, false));
        assert!(is_final(day(26), today, Some(day(28)), false));
        assert!(!is_final(day(26), today, Some(day(26)), false));
        assert!(!is_final(day(26), today, None, true));
        assert!(!is_final(day(20), today, None, true));
        assert!(is_final(day(19), today, None, true));
    }
}
