//! What a payload may be. Checked where a payload enters (submission, follow-ups), relied on after that.

use serde_json::value::RawValue;

/// Largest accepted payload, in bytes of JSON. RabbitMQ 4 takes messages up to 16 MiB and closes the
/// channel above that, which would fail innocent neighbours; this stays far below.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;

/// Why a payload is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Over [`MAX_PAYLOAD_BYTES`].
    #[error(
        "the payload has {0} bytes, at most {MAX_PAYLOAD_BYTES} are allowed: split it, or send a reference"
    )]
    TooLarge(usize),
    /// A NUL character in a string or key: PostgreSQL cannot store one, so nobody may.
    #[error("the payload contains a NUL character (\\u0000), which cannot be stored: remove it")]
    Nul,
}

/// Checks size and NUL. The text is known to be valid JSON already, because it is a [`RawValue`].
pub fn check(payload: &RawValue) -> Result<(), PayloadError> {
    let text = payload.get();
    if text.len() > MAX_PAYLOAD_BYTES {
        return Err(PayloadError::TooLarge(text.len()));
    }
    if contains_nul(text) {
        return Err(PayloadError::Nul);
    }
    Ok(())
}

/// Whether valid JSON text contains an escaped NUL (a bare one is not valid JSON).
///
/// `\u0000` counts only when its backslash is not itself escaped: `"\\u0000"` is harmless text.
#[must_use]
pub fn contains_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let backslashes_before = json[..at].bytes().rev().take_while(|b| *b == b'\\').count();
        backslashes_before % 2 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn nul_is_refused_wherever_it_stands() {
        assert_eq!(check(&raw(r#"{"a":"x\u0000"}"#)), Err(PayloadError::Nul));
        assert_eq!(check(&raw(r#"{"\u0000":1}"#)), Err(PayloadError::Nul));
        assert_eq!(check(&raw(r#"{"a":"\\\u0000"}"#)), Err(PayloadError::Nul));
        assert_eq!(
            check(&raw(r#"{"a":"\\u0000 is how JSON writes NUL"}"#)),
            Ok(())
        );
    }

    #[test]
    fn size_is_bounded() {
        let big = format!("\"{}\"", "x".repeat(MAX_PAYLOAD_BYTES));
        assert_eq!(check(&raw(&big)), Err(PayloadError::TooLarge(big.len())));
        assert_eq!(check(&raw("null")), Ok(()));
    }
}
