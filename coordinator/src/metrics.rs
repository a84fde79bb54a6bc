//! The coordinator's metrics: their names and help texts in one place.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Tells the recorder what each metric means; `/metrics` shows it as help text.
pub fn describe() {
    batches();
    operations();
    limits();
    health();
}

/// The way of a batch.
fn batches() {
    describe_counter!(
        "tidegate_accepted_total",
        "Batches of accepted runs, without follow-ups."
    );
    describe_counter!(
        "tidegate_published_total",
        "Attempts that the broker confirmed."
    );
    describe_counter!(
        "tidegate_publish_failures_total",
        "Groups that were not published whole."
    );
    describe_counter!(
        "tidegate_places_freed_total",
        "Batches that held a place in the window and were not out by the ledger."
    );
    describe_counter!(
        "tidegate_ledger_doubts_total",
        "Commits that may have happened or not: the database's answer was lost."
    );
    describe_counter!(
        "tidegate_settled_total",
        "Outcomes by what they did to their batch."
    );
    describe_counter!(
        "tidegate_strange_outcomes_total",
        "Messages with outcomes that cannot be settled, put aside, by reason."
    );
    describe_counter!(
        "tidegate_redelivered_outcomes_total",
        "Outcomes of attempts that the broker had delivered before."
    );
    describe_counter!(
        "tidegate_dead_messages_total",
        "Messages from the dead queue, by whether they belong to a known batch."
    );
    describe_gauge!(
        "tidegate_backlog_batches",
        "Batches that are pending, by the ledger."
    );
    describe_histogram!(
        "tidegate_publish_seconds",
        Unit::Seconds,
        "From the first publish of a group to its last confirm."
    );
    describe_histogram!(
        "tidegate_publish_group_batches",
        "Batches of one group of publishes."
    );
    describe_histogram!(
        "tidegate_record_seconds",
        Unit::Seconds,
        "Recording a group of attempts as out."
    );
    describe_histogram!(
        "tidegate_settle_seconds",
        Unit::Seconds,
        "Settling a group of outcomes."
    );
    describe_histogram!("tidegate_settle_group_outcomes", "Outcomes of one group.");
}

/// What people and the clock do.
fn operations() {
    describe_counter!(
        "tidegate_cancelled_total",
        "Pending batches that were cancelled because their run was."
    );
    describe_counter!(
        "tidegate_redriven_total",
        "Dead batches that an operator made pending again."
    );
    describe_counter!(
        "tidegate_discarded_total",
        "Dead batches that an operator called off."
    );
    describe_counter!(
        "tidegate_schedule_firings_total",
        "Firings of schedules by what became of them; refused ones are tried again."
    );
    describe_counter!(
        "tidegate_webhook_calls_total",
        "Calls of webhooks by what they came to."
    );
    describe_histogram!(
        "tidegate_webhook_seconds",
        Unit::Seconds,
        "One call of a webhook, from looking up its host to its answer."
    );
}

/// What workers ask.
fn limits() {
    describe_counter!(
        "tidegate_permits_total",
        "Answers to workers that asked whether a call may start, by pipeline and answer (granted, parked, unknown)."
    );
    describe_histogram!(
        "tidegate_permit_wait_seconds",
        Unit::Seconds,
        "How long granted calls have to wait for their turn."
    );
    describe_counter!(
        "tidegate_throttled_calls_total",
        "Calls that a service refused as too fast or over a quota, by limit."
    );
    describe_gauge!("tidegate_limit_keys", "Keys that are followed, by limit.");
    describe_counter!(
        "tidegate_answers_lost_total",
        "Groups of answers to workers that could not be sent."
    );
}

/// What is wrong, or was mended.
fn health() {
    describe_counter!(
        "tidegate_consumers_lost_total",
        "Consumers that had to be built again, by stage."
    );
    describe_counter!(
        "tidegate_missing_queues_total",
        "Queues that were found missing, and declared again."
    );
    describe_counter!(
        "tidegate_lost_total",
        "Batches that neither the broker nor a worker had any more, and that go out again."
    );
    describe_counter!(
        "tidegate_claims_total",
        "Batches that were delivered before, by what their worker was told to do with them."
    );
    describe_counter!(
        "tidegate_poisoned_total",
        "Batches that are dead because workers died of them."
    );
    describe_gauge!(
        "tidegate_level",
        "How bad it is: 0 ok, 1 warn, 2 critical; by what is measured."
    );
    describe_gauge!(
        "tidegate_level_value",
        "What a level is made from: messages (inbox, depth), batches (backlog), seconds (age)."
    );
    describe_gauge!(
        "tidegate_broker_blocked",
        "Whether the broker takes no publishes, for lack of memory or disk: 0 or 1."
    );
}

/// A count as histograms take it.
#[expect(clippy::cast_precision_loss, reason = "groups stay far below 2^52")]
pub(crate) fn size(count: usize) -> f64 {
    count as f64
}
