//! Checks one item, so that nothing is submitted that a worker or a sink could not take.

use serde_json::Value;
use shared::name::{Key, NameError};
use shared::payload::{MAX_PAYLOAD_BYTES, contains_nul};

/// Deepest nesting of arrays and objects in an item. JSON readers give up somewhere (`serde_json` at 128);
/// this stays below it with the batch's own array around the item.
pub(super) const MAX_DEPTH: usize = 100;
/// The brackets of the array that an item becomes part of.
const ARRAY_BYTES: usize = "[]".len();

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ItemProblem {
    #[error("is not UTF-8, from byte {0} of the line on")]
    NotUtf8(usize),
    #[error("is not one JSON value: {0}")]
    NotJson(String),
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("contains a NUL character (\\u0000), which cannot be stored: remove it")]
    Nul,
    #[error(
        "makes a payload of {0} bytes, at most {MAX_PAYLOAD_BYTES} are allowed: send a reference instead"
    )]
    TooLarge(usize),
    #[error("has no field {0:?}, which --key-field names")]
    NoKey(String),
    #[error("field {0:?}, which --key-field names, is neither text nor a whole number of 64 bits")]
    KeyType(String),
    #[error("field {field:?}, which --key-field names: {problem}")]
    BadKey { field: String, problem: NameError },
}

/// One checked item.
#[derive(Debug)]
pub(super) struct Item<'a> {
    /// Whose work it is.
    pub(super) key: Key,
    /// The item as it was written.
    pub(super) json: &'a str,
}

impl<'a> Item<'a> {
    pub(super) fn parse(line: &'a [u8], key_field: Option<&str>) -> Result<Self, ItemProblem> {
        let json =
            std::str::from_utf8(line).map_err(|e| ItemProblem::NotUtf8(e.valid_up_to() + 1))?;
        if json.len() + ARRAY_BYTES > MAX_PAYLOAD_BYTES {
            return Err(ItemProblem::TooLarge(json.len() + ARRAY_BYTES));
        }
        // A whole value, not just its syntax: lone surrogates and 1e999 pass a syntax check, and fail later.
        let value: Value = serde_json::from_str(json).map_err(|e| not_json(&e))?;
        if depth(&value) > MAX_DEPTH {
            return Err(ItemProblem::TooDeep);
        }
        if contains_nul(json) {
            return Err(ItemProblem::Nul);
        }
        let key = match key_field {
            Some(field) => key(&value, field)?,
            None => Key::default(),
        };
        Ok(Self { key, json })
    }
}

fn key(item: &Value, field: &str) -> Result<Key, ItemProblem> {
    let text = match item.get(field) {
        None => return Err(ItemProblem::NoKey(field.to_owned())),
        Some(Value::String(text)) => text.clone(),
        // Other numbers have more than one spelling, so they name nobody.
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => number.to_string(),
        Some(_) => return Err(ItemProblem::KeyType(field.to_owned())),
    };
    Key::new(&text).map_err(|problem| ItemProblem::BadKey {
        field: field.to_owned(),
        problem,
    })
}

/// The parser counts lines within the one line that it sees, which would only confuse.
fn not_json(error: &serde_json::Error) -> ItemProblem {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    if reason.starts_with("recursion limit") {
        return ItemProblem::TooDeep;
    }
    ItemProblem::NotJson(format!("{reason} at column {}", error.column()))
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
