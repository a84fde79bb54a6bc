//! What the figures of `tests/bench.sh` share.
//!
//! This machine's speed drifts, so a figure is never a number alone: each round measures the reference and
//! Tidegate one after the other on the same broker, and the median of the rounds is compared.

// Its users are programs that report progress on standard error.
#![allow(clippy::print_stderr)]

pub mod bare;
pub mod tidegate;

use serde_json::{Value, json};

/// Bytes of a batch's payload.
pub const PAYLOAD_BYTES: usize = 1024;

/// A payload of [`PAYLOAD_BYTES`] bytes of JSON.
#[must_use]
pub fn payload(number: usize) -> Value {
    let empty = json!({ "number": number, "text": "" }).to_string().len();
    json!({ "number": number, "text": "x".repeat(PAYLOAD_BYTES.saturating_sub(empty)) })
}

/// The middle one.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    *sorted
        .get(sorted.len() / 2)
        .expect("at least one round was run")
}

/// One figure as `tests/bench.sh` prints it.
#[must_use]
pub fn figure(
    name: &str,
    unit: &str,
    reference: &str,
    values: &[f64],
    reference_values: &[f64],
) -> Value {
    let (value, reference_value) = (median(values), median(reference_values));
    let round = |number: f64, digits: f64| (number * digits).round() / digits;
    json!({
        "figure": name,
        "value": round(value, 1.0),
        "unit": unit,
        "reference": reference,
        "reference_value": round(reference_value, 1.0),
        "ratio": round(value / reference_value, 1000.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_the_size_that_the_figure_names() {
        for number in [0, 7, 99_999] {
            assert_eq!(payload(number).to_string().len(), PAYLOAD_BYTES);
        }
    }

    #[test]
    fn a_figure_compares_medians() {
        let figure = figure("f", "u/s", "r", &[5.0, 1.0, 3.0], &[6.0, 60.0, 0.6]);
        assert_eq!(
            (&figure["value"], &figure["ratio"]),
            (&json!(3.0), &json!(0.5))
        );
    }
}
