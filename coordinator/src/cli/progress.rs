//! How a run's progress is told on stderr: a live bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use coordinator::run::{Run, RunState};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use crate::output;
use crate::pace::Pace;

/// Plain lines come at most this often, and only when something changed.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// How often the bar redraws its clock while nothing changes.
const TICK_EVERY: Duration = Duration::from_millis(200);

/// Tells how a run gets on.
#[derive(Debug)]
pub(crate) struct Progress {
    pace: Pace,
    face: Face,
}

#[derive(Debug)]
enum Face {
    Bar(ProgressBar),
    Lines { told: String, at: Option<Instant> },
}

impl Progress {
    /// A bar if stderr is a terminal.
    pub(crate) fn new() -> Self {
        let face = if std::io::stderr().is_terminal() {
            let template = "{bar:20} {percent:>3}% {wide_msg}";
            let style = ProgressStyle::with_template(template).expect("a constant template");
            let bar = ProgressBar::new(0).with_style(style);
            bar.enable_steady_tick(TICK_EVERY);
            Face::Bar(bar)
        } else {
            Face::Lines {
                told: String::new(),
                at: None,
            }
        };
        Self {
            pace: Pace::default(),
            face,
        }
    }

    /// The run stands like this now.
    pub(crate) fn show(&mut self, now: Instant, run: &Run) {
        self.pace.see(now, run.batches.finished());
        let text = text(run, &self.pace);
        match &mut self.face {
            Face::Bar(bar) => {
                bar.set_length(run.batches.accepted);
                bar.set_position(run.batches.finished());
                bar.set_message(text);
            }
            Face::Lines { told, at } => {
                let due = at.is_none_or(|at| now.duration_since(at) >= LINE_EVERY);
                // The rate alone changes with every look and is no news.
                let news = counts(run, "");
                if due && *told != news {
                    output::say(&text);
                    (*told, *at) = (news, Some(now));
                }
            }
        }
    }

    /// Something else worth knowing.
    pub(crate) fn say(&self, line: &str) {
        match &self.face {
            Face::Bar(bar) => bar.suspend(|| output::say(line)),
            Face::Lines { .. } => output::say(line),
        }
    }

    /// Takes the bar away and tells the last word.
    pub(crate) fn end(self, run: &Run) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
        output::say(&format!(
            "run {} {}: {}",
            run.run,
            run.state,
            counts(run, "")
        ));
    }

    /// Takes the bar away.
    pub(crate) fn leave(self) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
    }
}

/// `1,234/5,000 batches, 512/s, 7s left, 3 retries, 0 dead`: fits beside the bar in 80 columns.
fn text(run: &Run, pace: &Pace) -> String {
    let rate = pace.rate().map_or_else(String::new, |rate| {
        let digits = usize::from(rate < 10.0);
        format!(", {rate:.digits$}/s")
    });
    let remaining = run.batches.accepted.saturating_sub(run.batches.finished());
    let time = pace.time_for(remaining).filter(|_| remaining > 0);
    let left = time.map_or_else(String::new, |time| {
        format!(", {:#} left", HumanDuration(time))
    });
    counts(run, &(rate + &left))
}

fn counts(run: &Run, speed: &str) -> String {
    let batches = &run.batches;
    let cancelled = match batches.cancelled {
        0 => String::new(),
        count => format!(", {} cancelled", HumanCount(count)),
    };
    let paused = match run.state {
        RunState::Paused => ", paused",
        _ => "",
    };
    format!(
        "{}/{} batches{speed}, {} retries, {} dead{cancelled}{paused}",
        HumanCount(batches.finished()),
        HumanCount(batches.accepted),
        HumanCount(run.retries),
        HumanCount(batches.dead),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::tests::run;

    #[test]
    fn progress_says_how_much_how_fast_and_how_long() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut run = run();
        run.batches.accepted = 5_000;
        pace.see(start, 0);
        assert_eq!(text(&run, &pace), "0/5,000 batches, 0 retries, 0 dead");
        run.batches.completed = 1_000;
        run.batches.dead = 2;
        run.retries = 3;
        pace.see(start + Duration::from_secs(2), 1_000);
        assert_eq!(
            text(&run, &pace),
            "1,002/5,000 batches, 500/s, 8s left, 3 retries, 2 dead"
        );
        run.batches.completed = 4_998;
        assert!(!text(&run, &pace).contains("left"));
    }
}
