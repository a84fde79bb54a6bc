//! How large a key's share is.

use serde::Deserialize;

/// How many batches a key may send each time its turn comes: 0.1 to 100, in steps of 0.1, 1 by default. With
/// 3, a key gets three times what a key without a weight gets as long as both have work; with 0.1, one batch
/// every tenth turn. A batch counts as one, however long it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Weight(u32);

/// A weight that is not within the bounds.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a weight must be 0.1 to 100, is {0}")]
pub struct WeightError(f64);

impl Weight {
    /// What one batch costs, in the unit of [`Self::tenths`].
    pub const BATCH: u32 = 10;
    const MAX: f64 = 100.0;

    /// The weight in tenths of a batch.
    #[must_use]
    pub const fn tenths(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(Self::BATCH)
    }
}

impl TryFrom<f64> for Weight {
    type Error = WeightError;

    fn try_from(weight: f64) -> Result<Self, WeightError> {
        let tenths = (weight * f64::from(Self::BATCH)).round();
        if !(1.0..=Self::MAX * f64::from(Self::BATCH)).contains(&tenths) {
            return Err(WeightError(weight));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number from 1 to 1,000"
        )]
        Ok(Self(tenths as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_to_their_bounds() {
        for (weight, tenths) in [(0.1, 1), (0.5, 5), (1.0, 10), (2.26, 23), (100.0, 1_000)] {
            assert_eq!(Weight::try_from(weight).map(Weight::tenths), Ok(tenths));
        }
        for weight in [0.0, 0.04, -1.0, 100.1, f64::NAN, f64::INFINITY] {
            assert!(Weight::try_from(weight).is_err(), "{weight}");
        }
    }
}
