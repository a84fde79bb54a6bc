//! What a schedule does at a given time. Pure: what was looked after and the time come in, what to do comes out.

use jiff::{SignedDuration, Timestamp};
use shared::config::{Missed, ScheduleConfig};

/// What is to be done about a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing fires before then. `None`: never again.
    Wait(Option<Timestamp>),
    /// This firing is to be submitted.
    Fire(Timestamp),
    /// Firings up to then were missed and stay so.
    Skip(Timestamp),
    /// The clock was set back, and now it is then. What fires again is submitted again, under the same
    /// idempotency key, and gives the same run; a clock that was wrong by years costs nothing else.
    Rewind(Timestamp),
}

/// What is to be done about a schedule that was looked after up to a time.
///
/// Firings that came less than `grace` ago are submitted one by one, in their order, however many restarts
/// there were. Of those that came before, the latest is submitted when the config says so and nothing
/// has fired since; the others are skipped. So whatever the length of an outage, the runs that follow
/// it are bounded: one, or those of the grace.
pub(super) fn due(schedule: &ScheduleConfig, looked_after: Timestamp, now: Timestamp) -> Due {
    if looked_after > now {
        return Due::Rewind(now);
    }
    let timetable = &schedule.timetable;
    let first = match timetable.next(looked_after) {
        Some(first) if first <= now => first,
        next => return Due::Wait(next),
    };
    let in_time = in_time_since(schedule, now);
    if first > in_time {
        return Due::Fire(first);
    }
    if timetable.latest(in_time, now).is_some() {
        return Due::Skip(in_time);
    }
    let latest = timetable.latest(first, now).unwrap_or(first);
    match schedule.missed {
        Missed::CatchUp => Due::Fire(latest),
        Missed::Skip => Due::Skip(latest),
    }
}

/// Firings after this are in time.
fn in_time_since(schedule: &ScheduleConfig, now: Timestamp) -> Timestamp {
    let grace = SignedDuration::try_from(schedule.grace.get()).unwrap_or(SignedDuration::MAX);
    now.checked_sub(grace).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use shared::config::{SchedulePriority, Span};
    use shared::name::PipelineName;
    use shared::timetable::Timetable;

    use super::*;

    fn schedule(cron: &str, missed: Missed) -> ScheduleConfig {
        ScheduleConfig {
            timetable: Timetable::new(cron, "America/Los_Angeles").unwrap(),
            pipeline: PipelineName::new("a").unwrap(),
            lines: String::new(),
            priority: SchedulePriority::Normal,
            missed,
            grace: Span::seconds(60),
            webhook: None,
            enabled: true,
        }
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// What a coordinator submits that began to look after the schedule at one time and then looks at it at
    /// these.
    fn submitted(schedule: &ScheduleConfig, start: &str, looks: &[&str]) -> Vec<String> {
        let mut looked_after = time(start);
        let mut submitted = Vec::new();
        for now in looks.iter().map(|look| time(look)) {
            loop {
                let due = due(schedule, looked_after, now);
                let moved_on = match due {
                    Due::Wait(next) => {
                        assert!(next.is_some_and(|next| next > now), "{due:?} at {now}");
                        break;
                    }
                    Due::Fire(at) => {
                        submitted.push(at.to_string());
                        at
                    }
                    Due::Skip(to) => to,
                    Due::Rewind(to) => {
                        assert_eq!((to, looked_after > now), (now, true));
                        looked_after = to;
                        continue;
                    }
                };
                assert!(
                    looked_after < moved_on && moved_on <= now,
                    "{due:?} at {now}"
                );
                looked_after = moved_on;
            }
        }
        submitted
    }

    #[test]
    fn each_firing_is_submitted_once() {
        let schedule = schedule("*/10 * * * *", Missed::Skip);
        let looks = [
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:10:00Z",
            "2026-01-01T00:10:00.1Z",
            "2026-01-01T00:19:59.9Z",
            "2026-01-01T00:20:59Z",
        ];
        let expected = ["2026-01-01T00:10:00Z", "2026-01-01T00:20:00Z"];
        assert_eq!(
            submitted(&schedule, "2026-01-01T00:05:00Z", &looks[1..]),
            expected
        );
        assert_eq!(
            submitted(&schedule, "2026-01-01T00:00:00Z", &looks),
            expected
        );
    }

    #[test]
    fn a_short_outage_costs_no_firing_at_all() {
        let schedule = schedule("*/15 * * * * *", Missed::Skip);
        let fired = submitted(&schedule, "2026-01-01T00:00:00Z", &["2026-01-01T00:00:59Z"]);
        let expected = [
            "2026-01-01T00:00:15Z",
            "2026-01-01T00:00:30Z",
            "2026-01-01T00:00:45Z",
        ];
        assert_eq!(fired, expected);
    }

    #[test]
    fn missed_firings_are_skipped_or_the_latest_is_caught_up() {
        let after = |missed, now| {
            submitted(
                &schedule("0 * * * *", missed),
                "2025-06-30T00:30:00Z",
                &[now],
            )
        };
        // An outage of half a year.
        let nothing: [&str; 0] = [];
        assert_eq!(after(Missed::Skip, "2026-01-01T00:30:00Z"), nothing);
        assert_eq!(
            after(Missed::CatchUp, "2026-01-01T00:30:00Z"),
            ["2026-01-01T00:00:00Z"]
        );
        // It ended just after a firing, which is in time and stands for all before it.
        for missed in [Missed::Skip, Missed::CatchUp] {
            assert_eq!(
                after(missed, "2026-01-01T00:00:59Z"),
                ["2026-01-01T00:00:00Z"]
            );
            assert_eq!(after(missed, "2025-06-30T00:59:59Z"), nothing);
        }
    }

    #[test]
    fn the_firings_after_an_outage_are_bounded() {
        let every_second = schedule("* * * * * *", Missed::CatchUp);
        let fired = submitted(
            &every_second,
            "1996-01-01T00:00:00Z",
            &["2026-01-01T00:00:00Z"],
        );
        assert_eq!(fired.len(), 60);
        assert_eq!(fired.last().unwrap(), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn a_change_of_the_clock_fires_as_often_as_a_day_without() {
        let nightly = schedule("30 2 * * *", Missed::Skip);
        let spring = [
            "2026-03-07T10:30:00Z",
            "2026-03-08T10:00:00Z",
            "2026-03-09T09:30:00Z",
        ];
        assert_eq!(submitted(&nightly, "2026-03-07T00:00:00Z", &spring), spring);
        let early = schedule("30 1 * * *", Missed::CatchUp);
        let autumn = [
            "2026-10-31T08:30:00Z",
            "2026-11-01T08:30:00Z",
            "2026-11-02T09:30:00Z",
        ];
        let looks = [autumn[0], autumn[1], "2026-11-01T09:30:00Z", autumn[2]];
        assert_eq!(submitted(&early, "2026-10-31T00:00:00Z", &looks), autumn);
    }

    #[test]
    fn a_clock_that_was_set_back_fires_the_same_times_again_and_goes_on() {
        let schedule = schedule("0 * * * *", Missed::CatchUp);
        let looks = [
            "2099-01-01T00:00:00Z",
            "2026-01-01T00:59:00Z",
            "2026-01-01T01:00:00Z",
            "2026-01-01T00:30:00Z",
            "2026-01-01T01:00:00Z",
            "2026-01-01T02:00:00Z",
        ];
        let expected = [
            "2099-01-01T00:00:00Z",
            "2026-01-01T01:00:00Z",
            "2026-01-01T01:00:00Z",
            "2026-01-01T02:00:00Z",
        ];
        assert_eq!(
            submitted(&schedule, "2026-01-01T00:00:00Z", &looks),
            expected
        );
    }
}
