//! The worker's metrics: their names and help texts in one place.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Tells the recorder what each metric means; `/metrics` shows it as help text.
pub fn describe() {
    batches();
    health();
}

/// The way of a batch.
fn batches() {
    describe_counter!(
        "tidegate_outcomes_total",
        "Outcomes that the broker has confirmed, by pipeline and outcome."
    );
    describe_histogram!(
        "tidegate_handler_seconds",
        Unit::Seconds,
        "How long handlers ran, by pipeline."
    );
    describe_counter!(
        "tidegate_redelivered_total",
        "Batches that somebody else had before."
    );
    describe_counter!(
        "tidegate_undecodable_total",
        "Messages on work queues that are no batch for this worker, by reason."
    );
    describe_gauge!(
        "tidegate_look_ahead",
        "Deliveries that are held beyond the slots, as the broker's round trip and the batches ask for."
    );
    describe_counter!(
        "tidegate_prefetch_changes_total",
        "Consumers that were replaced by one with another prefetch."
    );
    describe_counter!(
        "tidegate_given_back_total",
        "Batches that were handed to somebody else, unfinished."
    );
}

/// What is wrong, or was mended.
fn health() {
    describe_gauge!(
        "tidegate_consuming",
        "Whether the consumers of all queues are open: 0 or 1; the same as /readyz."
    );
    describe_counter!(
        "tidegate_sessions_lost_total",
        "Times that consuming stopped and was built again, by reason."
    );
    describe_counter!(
        "tidegate_abandoned_total",
        "Handlers that were told to end, blocked their thread, and were abandoned."
    );
    describe_gauge!(
        "tidegate_abandoned_handlers",
        "Abandoned handlers that still block their thread."
    );
    describe_counter!(
        "tidegate_handlers_not_started_total",
        "Batches that found no thread before their deadline, because handlers block them."
    );
    describe_counter!(
        "tidegate_report_failures_total",
        "Groups of outcomes that the broker did not take at once."
    );
    describe_counter!(
        "tidegate_sink_failures_total",
        "Calls of the sink that it did not answer."
    );
    describe_counter!(
        "tidegate_sink_bisections_total",
        "Groups of batches that the sink refused and that were written in halves."
    );
    describe_counter!(
        "tidegate_asking_lost_total",
        "Times that the way to the coordinator broke."
    );
    describe_counter!(
        "tidegate_permits_unanswered_total",
        "Questions for permits that no coordinator answered."
    );
    describe_counter!(
        "tidegate_exec_processes_started_total",
        "Long-lived processes that were started, by pipeline."
    );
    describe_counter!(
        "tidegate_exec_processes_lost_total",
        "Long-lived processes that ended by themselves or had to be ended, by pipeline."
    );
}
