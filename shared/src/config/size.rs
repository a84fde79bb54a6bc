//! A number of bytes in the config: `"512MiB"`, `"2GiB"`.

use std::fmt;

use serde::Deserialize;

/// Units by their factor, the largest first.
const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A positive number of bytes that the config gives as text with a unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(u64);

impl Size {
    /// So many mebibytes.
    #[must_use]
    pub const fn mebibytes(mebibytes: u64) -> Self {
        Self(mebibytes * (1 << 20))
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let read = || {
            let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
            let number = text.strip_suffix(unit)?.trim();
            // `parse` would take a sign.
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            let number: u64 = digits.then(|| number.parse().ok()).flatten()?;
            number.checked_mul(*factor).filter(|bytes| *bytes > 0)
        };
        read().map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no size: write a whole number with KiB, MiB or GiB, such as \"512MiB\""
            )
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |(_, factor): &&(&str, u64)| self.0.is_multiple_of(*factor);
        let (unit, factor) = UNITS.iter().find(divides).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Option<u64> {
        Size::try_from(text.to_owned()).ok().map(Size::bytes)
    }

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        assert_eq!(bytes("512MiB"), Some(512 << 20));
        assert_eq!(bytes("2 GiB"), Some(2 << 30));
        assert_eq!(bytes("7KiB"), Some(7 << 10));
        assert_eq!(bytes("1B"), Some(1));
        for wrong in [
            "",
            "512",
            "MiB",
            "0MiB",
            "-1MiB",
            "+1MiB",
            "1.5GiB",
            "1MB",
            "1mib",
            "99999999999999GiB",
        ] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn they_print_as_they_are_written() {
        for text in ["512MiB", "3GiB", "1000KiB", "1025B"] {
            assert_eq!(Size::try_from(text.to_owned()).unwrap().to_string(), text);
        }
    }
}
