//! What JSON may be that Tidegate carries and stores: payloads, items, rows. Checked where it enters
//! (submission, follow-ups, a command's output), relied on after that.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Largest accepted payload, in bytes of JSON. RabbitMQ 4 takes messages up to 16 MiB and closes the
/// channel above that, which would fail innocent neighbours; this stays far below.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;
/// Deepest nesting of arrays and objects. JSON readers give up somewhere (`serde_json` at 128); this
/// leaves room for what is put around it.
pub const MAX_DEPTH: usize = 100;

/// Why a payload is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Over [`MAX_PAYLOAD_BYTES`].
    #[error(
        "the payload has {0} bytes, at most {MAX_PAYLOAD_BYTES} are allowed: split it, or send a reference"
    )]
    TooLarge(usize),
    /// JSON that cannot be carried.
    #[error(transparent)]
    Json(#[from] JsonError),
}

/// Why JSON cannot be carried and stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// It is not one JSON value, or one that no reader could take: a lone surrogate, `1e999`.
    #[error("is not one JSON value: {0}")]
    Malformed(String),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A NUL character in a string or key: PostgreSQL cannot store one, so nobody may.
    #[error("contains a NUL character (\\u0000), which cannot be stored: remove it")]
    Nul,
}

/// Checks a payload's size and JSON.
pub fn check(payload: &RawValue) -> Result<(), PayloadError> {
    let text = payload.get();
    if text.len() > MAX_PAYLOAD_BYTES {
        return Err(PayloadError::TooLarge(text.len()));
    }
    Ok(check_json(text)?)
}

/// Checks that a text is one JSON value that every part of the system can take.
pub fn check_json(text: &str) -> Result<(), JsonError> {
    check_json_inside(text, 0)
}

/// The same for a value that will stand inside `around` further arrays or objects.
pub fn check_json_inside(text: &str, around: usize) -> Result<(), JsonError> {
    let Depth(depth) = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    if depth + around > MAX_DEPTH {
        return Err(JsonError::TooDeep);
    }
    if contains_nul(text) {
        Err(JsonError::Nul)
    } else {
        Ok(())
    }
}

/// The parser counts lines within the one value that it sees, which would only confuse.
fn malformed(error: &serde_json::Error) -> JsonError {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    if reason.starts_with("recursion limit") {
        return JsonError::TooDeep;
    }
    JsonError::Malformed(format!("{reason} at column {}", error.column()))
}

/// Whether valid JSON text contains an escaped NUL (a bare one is not valid JSON).
///
/// `\u0000` counts only when its backslash is not itself escaped: `"\\u0000"` is harmless text.
#[must_use]
pub fn contains_nul(json: &str) -> bool {
    // Most texts have no escapes at all, and that is found out much faster.
    json.contains('\\') && has_nul_escape(json)
}

fn has_nul_escape(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let backslashes_before = json[..at].bytes().rev().take_while(|b| *b == b'\\').count();
        backslashes_before % 2 == 0
    })
}

/// How deep a value is nested. Reads every string and number as a reader would, which a check of the
/// syntax alone does not, and keeps nothing.
struct Depth(usize);

impl<'de> Deserialize<'de> for Depth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DepthVisitor)
    }
}

struct DepthVisitor;

impl<'de> Visitor<'de> for DepthVisitor {
    type Value = Depth;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_str<E>(self, _: &str) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Depth, A::Error> {
        let mut deepest = 0;
        while let Some(Depth(depth)) = seq.next_element()? {
            deepest = deepest.max(depth);
        }
        Ok(Depth(deepest + 1))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Depth, A::Error> {
        let mut deepest = 0;
        while let Some((Depth(_), Depth(depth))) = map.next_entry()? {
            deepest = deepest.max(depth);
        }
        Ok(Depth(deepest + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn nul_is_refused_wherever_it_stands() {
        for nul in [
            r#"{"a":"x\u0000"}"#,
            r#"{"\u0000":1}"#,
            r#"{"a":"\\\u0000"}"#,
        ] {
            assert_eq!(check(&raw(nul)), Err(JsonError::Nul.into()), "{nul}");
        }
        assert_eq!(
            check(&raw(r#"{"a":"\\u0000 is how JSON writes NUL"}"#)),
            Ok(())
        );
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let big = format!("\"{}\"", "x".repeat(MAX_PAYLOAD_BYTES));
        assert_eq!(check(&raw(&big)), Err(PayloadError::TooLarge(big.len())));
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check_json(&nested(MAX_DEPTH)), Ok(()));
        assert_eq!(check_json(&nested(MAX_DEPTH + 1)), Err(JsonError::TooDeep));
        assert_eq!(check_json(&nested(100_000)), Err(JsonError::TooDeep));
    }

    #[test]
    fn what_passes_a_syntax_check_alone_is_refused() {
        for odd in [
            r#""\ud800""#,
            "1e999",
            "{",
            "1 2",
            "",
            "NaN",
            "[1,]",
            r#"{"a":"\udc00"}"#,
        ] {
            assert!(
                matches!(check_json(odd), Err(JsonError::Malformed(_))),
                "{odd}"
            );
        }
        for fine in [
            "null",
            "-0.5e-3",
            "123456789012345678901234567890",
            r#"{"ä":[true,{"b":"💥\u00e9"}]}"#,
        ] {
            assert_eq!(check_json(fine), Ok(()), "{fine}");
        }
    }
}
