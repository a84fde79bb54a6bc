//! The three integer functions under generator v1. Everything wraps at 64 bits.

/// The golden ratio as a 64-bit fraction: the step of `SplitMix64`.
pub(crate) const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of `SplitMix64`: every input bit reaches every output bit.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value;
    z ^= z >> 30;
    z = z.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^= z >> 27;
    z = z.wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a, 64 bits, over the UTF-8 bytes of `text`.
#[must_use]
pub fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}

/// The lowest `bits` bits of `value`.
pub(crate) const fn low(value: u64, bits: u64) -> u64 {
    value & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primitives_meet_their_self_checks() {
        assert_eq!(mix(1), 0x5692_161d_100b_05e5);
        assert_eq!(fnv("sc-domain:alpha.example"), 0x1b41_2e5e_9650_e854);
        assert_eq!(low(0xFF, 3), 7);
        assert_eq!(low(0xFF, 0), 0);
    }
}
