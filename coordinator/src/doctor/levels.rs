//! Whether something piles up, as the levels say.

use super::{Check, Finding};
use crate::levels::{Level, LevelsView, Measure};

const NAME: &str = "levels";

/// What is to be said about these levels.
pub(super) fn check(levels: &LevelsView) -> Check {
    let shown: Vec<String> = levels
        .measures
        .iter()
        .map(|(measure, shown)| {
            let value = shown
                .value
                .map_or("unknown".to_owned(), |value| value.to_string());
            let unit = if *measure == Measure::Age { " s" } else { "" };
            format!("{measure} {value}{unit} ({})", shown.level)
        })
        .collect();
    let detail = if shown.is_empty() {
        "nothing is measured yet".to_owned()
    } else {
        shown.join(", ")
    };
    let finding = match levels.level {
        Level::Ok => return Check::ok(NAME, detail),
        Level::Warn => Finding::Warn,
        Level::Critical => Finding::Fail,
    };
    // The worst of them is what to look at first.
    let worst = levels.measures.iter().max_by_key(|(_, shown)| shown.level);
    let advice = match worst.map(|(measure, _)| measure) {
        Some(Measure::Inbox) => {
            "the coordinator settles slower than workers report: look at the ledger's disk"
        }
        Some(Measure::Depth) => {
            "workers take less than is sent: start more, or look at why they are slow"
        }
        _ => {
            "more is submitted than is done: start workers, or look at paused runs, pipelines and limits"
        }
    };
    Check::new(NAME, finding, detail).advise(advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::levels::MeasureView;

    #[test]
    fn the_worst_level_decides_and_is_explained() {
        let shown = |level, value| MeasureView {
            level,
            value,
            warn: 10,
            critical: 20,
        };
        let mut levels = LevelsView::default();
        assert_eq!(check(&levels).finding, Finding::Ok);
        levels
            .measures
            .insert(Measure::Age, shown(Level::Warn, Some(12)));
        levels
            .measures
            .insert(Measure::Inbox, shown(Level::Ok, None));
        levels.level = Level::Warn;
        let warned = check(&levels);
        assert_eq!(warned.finding, Finding::Warn);
        assert!(warned.detail.contains("age 12 s (warn)"), "{warned:?}");
        assert!(warned.detail.contains("inbox unknown (ok)"), "{warned:?}");
        levels
            .measures
            .insert(Measure::Inbox, shown(Level::Critical, Some(21)));
        levels.level = Level::Critical;
        let failed = check(&levels);
        assert_eq!(failed.finding, Finding::Fail);
        assert!(failed.advice.unwrap().contains("disk"));
    }
}
