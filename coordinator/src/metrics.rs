//! The coordinator's metrics: their names and help texts in one place.

/// Tells the recorder what each metric means; `/metrics` shows it as help text.
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

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
        "tidegate_settled_total",
        "Outcomes by what they did to their batch."
    );
    describe_counter!(
        "tidegate_redelivered_outcomes_total",
        "Outcomes of attempts that the broker had delivered before."
    );
    describe_counter!(
        "tidegate_dead_messages_total",
        "Messages from the dead queue, by whether they belong to a known batch."
    );
    describe_counter!(
        "tidegate_consumers_lost_total",
        "Consumers that had to be built again, by stage."
    );
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

/// A count as histograms take it.
#[expect(clippy::cast_precision_loss, reason = "groups stay far below 2^52")]
pub(crate) fn size(count: usize) -> f64 {
    count as f64
}
