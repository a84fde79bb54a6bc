//! Fail points: places in the life of a batch where a test lets the process die, to see that nothing is lost
//! and nothing is done twice.
//!
//! | point | where |
//! |---|---|
//! | `c.submit.parsed` | lines are read, and not yet in the ledger |
//! | `c.ledger.before_commit` | all lines are in the ledger, and the run is not yet accepted |
//! | `c.ledger.committed` | the run is accepted, and neither client nor dispatcher knows |
//! | `c.publish.read` | payloads are read, and nothing is sent |
//! | `c.publish.sent` | batches are on their way, unconfirmed |
//! | `c.confirm.received` | batches are confirmed, and not yet recorded as out |
//! | `c.published.committed` | batches are recorded as out |
//! | `c.outcome.received` | outcomes are read, and not yet settled |
//! | `c.outcome.committed` | outcomes are settled, and not yet acked |
//! | `c.outcome.acked` | outcomes are acked |
//! | `w.delivered` | a batch has arrived |
//! | `w.handler.done` | its handler has ended, and nothing is stored |
//! | `w.sink.before_commit` | rows and marker are written, and not yet committed; a file is staged without a marker |
//! | `w.sink.committed` | rows and marker are stored, and nobody knows; a file is not in its place yet |
//! | `w.outcome.sent` | outcomes are on their way, unconfirmed |
//! | `w.outcome.confirmed` | the broker has the outcome, and the batch is not yet acked |
//!
//! The variable `FAILPOINTS` arms them, in debug builds only; a release build does not look at it.
//! `c.outcome.acked=abort` aborts the process when it first gets there, `c.outcome.acked=3*off->abort` after
//! three times; several are separated by semicolons. This is the language of the crate `fail`, which cannot abort.

/// Passes the place `name`, or dies there.
#[inline]
pub fn reach(name: &str) {
    #[cfg(debug_assertions)]
    armed::reach(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    const VARIABLE: &str = "FAILPOINTS";

    static POINTS: LazyLock<Vec<Point>> = LazyLock::new(|| {
        let points = std::env::var(VARIABLE).unwrap_or_default();
        parse(&points).unwrap_or_else(|| panic!("{VARIABLE} is not understood: {points:?}"))
    });

    pub(super) fn reach(name: &str) {
        for point in POINTS.iter().filter(|point| point.name == name) {
            if !point.passes() {
                tracing::error!(name, "fail point reached");
                std::process::abort();
            }
        }
    }

    #[derive(Debug)]
    pub(super) struct Point {
        name: String,
        /// How often it may still be passed.
        left: AtomicU32,
    }

    pub(super) fn parse(points: &str) -> Option<Vec<Point>> {
        let points = points.split(';').filter(|point| !point.is_empty());
        points.map(Point::parse).collect()
    }

    impl Point {
        fn parse(text: &str) -> Option<Self> {
            let (name, action) = text.split_once('=')?;
            let (passes, death) = action.split_once("*off->").unwrap_or(("0", action));
            if death != "abort" {
                return None;
            }
            Some(Self {
                name: name.to_owned(),
                left: AtomicU32::new(passes.parse().ok()?),
            })
        }

        pub(super) fn passes(&self) -> bool {
            let one_less = |left: u32| left.checked_sub(1);
            self.left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_ok()
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::armed::parse;

    #[test]
    fn a_point_is_passed_so_often_and_no_more() {
        let points = parse("a=3*off->abort;b=abort").unwrap();
        let passes = |point: usize| (0..5).filter(|_| points[point].passes()).count();
        assert_eq!((passes(0), passes(1)), (3, 0));
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for wrong in ["a", "a=", "a=panic", "a=x*off->abort", "a=-1*off->abort"] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
