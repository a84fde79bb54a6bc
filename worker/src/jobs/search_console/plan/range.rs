//! Which days a sync covers.

use jiff::civil::Date;
use shared::search_console::Days;

use super::super::calendar::{FINAL_AFTER_DAYS, HISTORY_DAYS, days_before};

/// The days that a sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) from: Date,
    pub(super) to: Date,
}

/// The days to look at, inside what Google keeps; `None` when none is left.
pub(super) fn range(days: Days, today: Date) -> Option<Range> {
    let newest = days_before(today, FINAL_AFTER_DAYS);
    let oldest = days_before(today, HISTORY_DAYS);
    let (from, to) = match days {
        Days::Last(0) => return None,
        Days::Last(count) => (days_before(newest, i64::from(count) - 1), newest),
        Days::Between { from, to } => (from, to.min(newest)),
    };
    let from = from.max(oldest);
    (from <= to).then_some(Range { from, to })
}

/// The newer half first.
pub(super) fn halves(Range { from, to }: Range) -> [Range; 2] {
    let days = from.duration_until(to).as_hours() / 24;
    let middle = days_before(to, days / 2);
    [
        Range { from: middle, to },
        Range {
            from,
            to: days_before(middle, 1),
        },
    ]
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    const TODAY: Date = date(2026, 3, 1);

    #[test]
    fn ranges_end_three_days_ago_and_start_within_the_history() {
        let last = range(Days::Last(10), TODAY).unwrap();
        assert_eq!(
            last,
            Range {
                from: date(2026, 2, 17),
                to: date(2026, 2, 26)
            }
        );
        let all = range(Days::Last(100_000), TODAY).unwrap();
        assert_eq!(all.from, days_before(TODAY, HISTORY_DAYS));
        let between = |from, to| range(Days::Between { from, to }, TODAY);
        assert_eq!(
            between(date(2026, 2, 20), date(2026, 4, 1)).unwrap().to,
            date(2026, 2, 26)
        );
        assert_eq!(between(date(2026, 2, 27), date(2026, 2, 28)), None);
        assert_eq!(range(Days::Last(0), TODAY), None);
    }

    #[test]
    fn halves_cover_the_range_without_overlap() {
        for days in 1..40 {
            let range = Range {
                from: days_before(TODAY, days),
                to: TODAY,
            };
            let [newer, older] = halves(range);
            assert_eq!((older.from, newer.to), (range.from, range.to));
            assert_eq!(older.to.tomorrow().unwrap(), newer.from);
            assert!(older.from <= older.to);
        }
    }
}
