//! What was measured, for programs and for people.

use serde::{Deserialize, Serialize};

/// One figure, as `tests/bench.sh` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name there.
    pub figure: String,
    /// Tidegate's: the median of its rounds.
    pub value: f64,
    /// Of both values.
    pub unit: String,
    /// What it is compared with.
    pub reference: String,
    /// The median of the reference's rounds.
    pub reference_value: f64,
    /// One by the other.
    pub ratio: f64,
    /// The lowest and the highest ratio of a single round.
    #[serde(default)]
    pub spread: Option<[f64; 2]>,
    /// What it should be.
    #[serde(default)]
    pub aim: Option<String>,
}

impl Figure {
    /// Compares the rounds of Tidegate with those of the reference, which were measured in turns.
    ///
    /// # Panics
    /// Without rounds.
    #[must_use]
    pub fn new(
        figure: &str,
        unit: &str,
        reference: &str,
        aim: &str,
        rounds: &[(f64, f64)],
    ) -> Self {
        let all = |part: fn(&(f64, f64)) -> f64| rounds.iter().map(part).collect::<Vec<_>>();
        let (value, reference_value) = (median(&all(|r| r.0)), median(&all(|r| r.1)));
        let ratios = sorted(&all(|r| r.0 / r.1));
        Self {
            figure: figure.to_owned(),
            value: rounded(value),
            unit: unit.to_owned(),
            reference: reference.to_owned(),
            reference_value: rounded(reference_value),
            ratio: rounded(value / reference_value),
            spread: Some([ratios[0], ratios[ratios.len() - 1]].map(rounded)),
            aim: Some(aim.to_owned()),
        }
    }

    /// Prints it as one line of JSON.
    ///
    /// # Panics
    /// When standard output is closed.
    #[allow(clippy::print_stdout)]
    pub fn print(&self) {
        println!("{}", serde_json::json!(self));
    }
}

/// The middle one.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this share of all lies.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> f64 {
    // Counts here are far below 2^52, and shares are between 0 and 1.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let index = (values.len() as f64 * share) as usize;
    let sorted = sorted(values);
    *sorted
        .get(index)
        .or(sorted.last())
        .expect("something was measured")
}

/// Of memory.
#[must_use]
pub fn mebibytes(bytes: u64) -> f64 {
    // Memory is far below 2^52 bytes.
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// To whole numbers where they are large, to thousandths where they are small.
fn rounded(value: f64) -> f64 {
    let digits = if value >= 100.0 { 1.0 } else { 1000.0 };
    (value * digits).round() / digits
}

// What is compared was rounded, or is one of the numbers that were put in.
#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_compares_medians_and_shows_the_spread() {
        let rounds = [(5.0, 6.0), (1.0, 60.0), (3.0, 0.5)];
        let figure = Figure::new("f", "u/s", "r", "0.5 of it", &rounds);
        assert_eq!((figure.value, figure.reference_value), (3.0, 6.0));
        assert_eq!(figure.ratio, 0.5);
        assert_eq!(figure.spread, Some([0.017, 6.0]));
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 50.0);
        assert_eq!(quantile(&values, 0.99), 99.0);
        assert_eq!(quantile(&values, 1.0), 99.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }
}
