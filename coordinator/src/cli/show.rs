//! Results as people read them: tables on stdout.

use comfy_table::{ContentArrangement, Table, presets};
use coordinator::doctor::Diagnosis;
use coordinator::fleet::Worker;
use coordinator::limits::LimitView;
use coordinator::operations::Handled;
use coordinator::run::{BatchDetail, DeadBatch, PipelineView, Run};
use coordinator::schedules::ScheduleView;
use indicatif::{HumanCount, HumanDuration};
use jiff::Timestamp;

/// Longest error text in a table cell; `--json` has all of it.
const SHOWN_ERROR_CHARS: usize = 200;

/// One run, a fact a line.
pub(crate) fn run(run: &Run) -> String {
    let batches = &run.batches;
    let mut table = table();
    let mut fact = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    fact("run", run.run.to_string());
    fact("pipeline", run.pipeline.to_string());
    fact("state", run.state.to_string());
    fact("priority", run.priority.to_string());
    for (name, count) in [
        ("accepted", batches.accepted),
        ("pending", batches.pending),
        ("out", batches.out),
        ("completed", batches.completed),
        ("dead", batches.dead),
        ("cancelled", batches.cancelled),
        ("retries", run.retries),
        ("rows", run.rows),
    ] {
        fact(name, HumanCount(count).to_string());
    }
    for (name, count) in &run.statistics {
        fact(&printable(name), HumanCount(*count).to_string());
    }
    fact("created", time(run.created_at));
    if let Some(finished_at) = run.finished_at {
        fact("finished", time(finished_at));
        let took = finished_at.duration_since(run.created_at).unsigned_abs();
        fact("took", HumanDuration(took).to_string());
    }
    text(table)
}

/// Runs, one a line.
pub(crate) fn runs(runs: &[Run]) -> String {
    let mut table = table();
    table.set_header([
        "RUN", "PIPELINE", "STATE", "DONE", "OF", "DEAD", "ROWS", "CREATED",
    ]);
    for run in runs {
        table.add_row([
            run.run.to_string(),
            run.pipeline.to_string(),
            run.state.to_string(),
            run.batches.finished().to_string(),
            run.batches.accepted.to_string(),
            run.batches.dead.to_string(),
            run.rows.to_string(),
            time(run.created_at),
        ]);
    }
    text(table)
}

/// Dead batches, one a line.
pub(crate) fn dead(batches: &[DeadBatch]) -> String {
    let mut table = table();
    table.set_header([
        "BATCH", "PIPELINE", "KEY", "ATTEMPTS", "DIED", "REASON", "ERROR",
    ]);
    for batch in batches {
        table.add_row([
            batch.batch.to_string(),
            batch.pipeline.to_string(),
            printable(batch.key.as_str()),
            batch.attempts.to_string(),
            time(batch.died_at),
            printable(&batch.reason),
            shorten(&printable(&batch.error)),
        ]);
    }
    text(table)
}

/// One batch: a fact a line, then its attempts.
pub(crate) fn batch(batch: &BatchDetail) -> String {
    let mut facts = table();
    let mut fact = |name: &str, value: String| {
        facts.add_row([name.to_owned(), value]);
    };
    fact("batch", batch.batch.to_string());
    fact("run", batch.run.to_string());
    fact("pipeline", batch.pipeline.to_string());
    fact("key", printable(batch.key.as_str()));
    fact("state", batch.state.to_string());
    fact("since", time(batch.since));
    fact("attempts", batch.attempts.to_string());
    fact("failures", batch.failures.to_string());
    for (name, text) in [("reason", &batch.reason), ("error", &batch.error)] {
        if let Some(text) = text {
            fact(name, printable(text));
        }
    }
    if let Some(in_hand) = &batch.in_hand {
        fact("worker", printable(in_hand.worker.as_str()));
        match (in_hand.done, in_hand.total) {
            (Some(done), Some(total)) => fact("progress", format!("{done} of {total}")),
            (Some(done), None) => fact("progress", done.to_string()),
            (None, _) => {}
        }
    }
    fact("payload", printable(batch.payload.get()));
    if batch.history.is_empty() {
        return text(facts);
    }
    let mut attempts = table();
    attempts.set_header([
        "ATTEMPT", "WORKER", "OUT", "SETTLED", "TOOK", "VERDICT", "ERROR",
    ]);
    for attempt in &batch.history {
        let worker = attempt.worker.as_ref();
        attempts.add_row([
            attempt.attempt.to_string(),
            worker.map_or_else(none, |worker| printable(worker.as_str())),
            attempt.out_at.map_or_else(none, time),
            time(attempt.settled_at),
            attempt.took_ms.map_or_else(none, |ms| format!("{ms} ms")),
            printable(&attempt.verdict),
            attempt
                .error
                .as_deref()
                .map_or_else(none, |error| shorten(&printable(error))),
        ]);
    }
    format!("{}\n\n{}", text(facts), text(attempts))
}

/// What a redrive or discard did, in a sentence.
pub(crate) fn handled(handled: &Handled, done: &str) -> String {
    let batches = match handled.batches {
        1 => "1 batch".to_owned(),
        many => format!("{} batches", HumanCount(many)),
    };
    if handled.dry_run {
        format!("{batches} would be {done}")
    } else if handled.interrupted {
        format!("{batches} {done}, then the coordinator was stopped: repeat it for the rest")
    } else {
        format!("{batches} {done}")
    }
}

/// Pipelines, one a line.
pub(crate) fn pipelines(pipelines: &[PipelineView]) -> String {
    let mut table = table();
    table.set_header(["PIPELINE", "STATE", "PENDING", "OUT", "WINDOW", "SLOTS"]);
    for pipeline in pipelines {
        let state = match (pipeline.configured, pipeline.paused) {
            (false, _) => "not configured",
            (true, true) => "paused",
            (true, false) => "open",
        };
        table.add_row([
            pipeline.pipeline.to_string(),
            state.to_owned(),
            pipeline.pending.to_string(),
            pipeline.out.to_string(),
            pipeline.window.to_string(),
            pipeline.slots.to_string(),
        ]);
    }
    text(table)
}

/// Schedules, one a line.
pub(crate) fn schedules(schedules: &[ScheduleView]) -> String {
    let mut table = table();
    table.set_header([
        "SCHEDULE", "STATE", "NEXT", "LAST", "RUN", "PIPELINE", "CRON", "TIMEZONE", "PROBLEM",
    ]);
    for schedule in schedules {
        let state = if schedule.enabled { "on" } else { "off" };
        let problem = schedule.problem.as_deref();
        table.add_row([
            printable(&schedule.schedule.to_string()),
            state.to_owned(),
            schedule.next.map_or_else(none, time),
            schedule.last.map_or_else(none, time),
            schedule.last_run.map_or_else(none, |run| run.to_string()),
            schedule.pipeline.to_string(),
            printable(&schedule.cron),
            printable(&schedule.timezone),
            problem.map_or_else(none, |problem| shorten(&printable(problem))),
        ]);
    }
    text(table)
}

/// Limits, a key a line.
pub(crate) fn limits(limits: &[LimitView]) -> String {
    let mut table = table();
    table.set_header([
        "LIMIT",
        "KEY",
        "PER MINUTE",
        "AT MOST",
        "WAITING",
        "HELD UNTIL",
        "GRANTED",
        "PARKED",
        "THROTTLED",
    ]);
    let rate = |rate: Option<f64>| rate.map_or_else(none, |rate| format!("{rate:.0}"));
    for limit in limits {
        let key = limit.key.as_ref();
        table.add_row([
            printable(&limit.limit.to_string()),
            key.map_or_else(none, |key| printable(key.as_str())),
            rate(limit.rate_per_minute),
            rate(limit.max_per_minute),
            limit.waiting.to_string(),
            limit.parked_until.map_or_else(none, time),
            limit.granted.to_string(),
            limit.parked.to_string(),
            limit.throttled.to_string(),
        ]);
    }
    text(table)
}

/// What the doctor found, a check a line, with what to do below.
pub(crate) fn diagnosis(diagnosis: &Diagnosis) -> String {
    let mut table = table();
    for check in &diagnosis.checks {
        table.add_row([
            check.finding.as_str().to_owned(),
            printable(&check.name),
            printable(&check.detail),
        ]);
        if let Some(advice) = &check.advice {
            table.add_row([
                String::new(),
                String::new(),
                format!("→ {}", printable(advice)),
            ]);
        }
    }
    text(table)
}

/// One dead batch in a sentence, for stderr.
pub(crate) fn dead_line(batch: &DeadBatch) -> String {
    format!(
        "dead: {} key {}: {}: {}",
        batch.batch,
        printable(batch.key.as_str()),
        printable(&batch.reason),
        shorten(&printable(&batch.error)),
    )
}

/// Workers, one a line.
pub(crate) fn workers(workers: &[Worker]) -> String {
    let mut table = table();
    table.set_header([
        "WORKER",
        "VERSION",
        "SLOTS",
        "HOLDING",
        "STATE",
        "SEEN",
        "MEMORY",
        "LANES",
        "CLOCK",
        "PIPELINES",
    ]);
    for worker in workers {
        let pipelines: Vec<_> = worker.pipelines.iter().map(ToString::to_string).collect();
        table.add_row([
            printable(worker.worker.as_str()),
            printable(&worker.version),
            worker.slots.to_string(),
            worker.holding.len().to_string(),
            if worker.draining {
                "draining"
            } else {
                "working"
            }
            .to_owned(),
            format!("{} ms ago", worker.seen_ms_ago),
            worker
                .memory_bytes
                .map_or("-".to_owned(), |bytes| format!("{} MiB", bytes >> 20)),
            worker
                .lanes
                .map_or("-".to_owned(), |lanes| lanes.to_string()),
            worker
                .clock_skew_ms
                .map_or("-".to_owned(), |skew| format!("{skew:+} ms")),
            pipelines.join(","),
        ]);
    }
    text(table)
}

/// No lines around the cells: `awk` and `column` can read it.
fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn text(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// What stands in a cell of which nothing is known.
fn none() -> String {
    "-".to_owned()
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Text from elsewhere must not steer the terminal, nor break a table.
fn printable(text: &str) -> String {
    let harmless = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().map(harmless).collect()
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_ERROR_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_steer_the_terminal() {
        assert_eq!(
            printable("\u{1b}[31mred\r\nnext\u{7}!\n"),
            " [31mred  next !"
        );
        assert!(shorten(&"ä".repeat(1_000)).chars().count() == SHOWN_ERROR_CHARS + 1);
    }
}
