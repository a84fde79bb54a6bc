//! What the figures of `tests/bench.sh` share.
//!
//! This machine's speed drifts, so a figure is never a number alone: each round measures the reference and
//! Tidegate one after the other on the same broker, and the median of the rounds is compared.

// Its users are programs that report progress on standard error.
#![allow(clippy::print_stderr)]

pub mod bare;
pub mod figure;
pub mod stamp;
pub mod table;
pub mod tidegate;

use std::time::Duration;

use serde_json::{Value, json};

/// Bytes of a batch's payload.
pub const PAYLOAD_BYTES: usize = 1024;

/// A payload of [`PAYLOAD_BYTES`] bytes of JSON.
#[must_use]
pub fn payload(number: usize) -> Value {
    json!({ "number": number, "text": payload_text(number) })
}

/// What makes a payload that large.
fn payload_text(number: usize) -> String {
    let empty = json!({ "number": number, "text": "" }).to_string().len();
    "x".repeat(PAYLOAD_BYTES.saturating_sub(empty))
}

/// Units in a span of time, per second.
#[must_use]
pub fn per_second(units: usize, span: Duration) -> f64 {
    // Counts here are far below 2^52, where floating point would begin to round.
    #[allow(clippy::cast_precision_loss)]
    let units = units as f64;
    units / span.as_secs_f64()
}

/// What one of so many cost.
#[must_use]
pub fn micros_each(cost: Duration, count: usize) -> u128 {
    cost.as_micros() / count.max(1) as u128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_the_size_that_the_figures_name() {
        for number in [0, 7, 99_999] {
            assert_eq!(payload(number).to_string().len(), PAYLOAD_BYTES);
        }
    }
}
