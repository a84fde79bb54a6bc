//! How long an answer takes, as a pure function of a random number.

use std::time::Duration;

use crate::config::Latency;
use crate::generator::mix;

/// Standard normal quantile of 0.99.
const Z99: f64 = 2.326_347_874;

impl Latency {
    /// The delay of request number `index`.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a row count and 53 random bits fit"
    )]
    pub(crate) fn delay(self, seed: u64, index: u64, rows: usize) -> Duration {
        match self {
            Self::Off => Duration::ZERO,
            Self::Fixed { ms } => Duration::from_millis(ms),
            Self::Lognormal {
                p50_ms,
                p99_ms,
                per_1000_rows_ms,
            } => {
                let sigma = (p99_ms / p50_ms).ln() / Z99;
                let ms = p50_ms * (sigma * normal(seed, index)).exp()
                    + per_1000_rows_ms * rows as f64 / 1000.0;
                Duration::from_secs_f64(ms / 1000.0)
            }
        }
    }
}

/// A number between 0 and 1, 0 excluded, for any 64 bits.
#[expect(
    clippy::cast_precision_loss,
    reason = "53 bits are exactly what a double holds"
)]
pub(crate) fn unit(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// A standard normal number (Box and Muller, 1958).
fn normal(seed: u64, index: u64) -> f64 {
    let first = mix(seed ^ mix(index));
    let second = mix(first);
    (-2.0 * unit(first).ln()).sqrt() * (std::f64::consts::TAU * unit(second)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lognormal_latency_has_the_configured_quantiles() {
        let latency = Latency::Lognormal {
            p50_ms: 350.0,
            p99_ms: 2500.0,
            per_1000_rows_ms: 20.0,
        };
        let mut delays: Vec<Duration> = (0..20_000)
            .map(|index| latency.delay(42, index, 0))
            .collect();
        delays.sort_unstable();
        let near =
            |index: usize, ms: f64| (delays[index].as_secs_f64() * 1000.0 / ms - 1.0).abs() < 0.08;
        assert!(near(10_000, 350.0) && near(19_800, 2500.0));
        let with_rows = latency
            .delay(42, 7, 25_000)
            .saturating_sub(latency.delay(42, 7, 0));
        assert!(with_rows.abs_diff(Duration::from_millis(500)) < Duration::from_micros(10));
    }
}
