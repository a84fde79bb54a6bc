//! Checks one item, so that nothing is submitted that a worker or a sink could not take.

use serde_json::Value;
use shared::name::{Key, NameError};
use shared::payload::{JsonError, MAX_PAYLOAD_BYTES, check_json_inside};

/// The brackets of the array that an item becomes part of.
const ARRAY_BYTES: usize = "[]".len();
/// That array.
const LEVELS_AROUND: usize = 1;

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ItemProblem {
    #[error("is not UTF-8, from byte {0} of the line on")]
    NotUtf8(usize),
    #[error(transparent)]
    Json(#[from] JsonError),
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
        check_json_inside(json, LEVELS_AROUND)?;
        let key = match key_field {
            Some(field) => key(json, field)?,
            None => Key::default(),
        };
        Ok(Self { key, json })
    }
}

fn key(json: &str, field: &str) -> Result<Key, ItemProblem> {
    let item: Value =
        serde_json::from_str(json).map_err(|e| JsonError::Malformed(e.to_string()))?;
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
