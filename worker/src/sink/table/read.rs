//! One JSON object → cells, without a value for each in between: texts are borrowed from the row where they can be.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use shared::config::{Column, ColumnType};
use shared::payload::{JsonError, check_json_inside};

use super::{Cell, Shape};

/// A value stands in its row.
const LEVELS_AROUND: usize = 1;
/// Most bytes of a wrong value that are shown.
const SHOWN_BYTES: usize = 60;

/// Reads row after row of one shape.
#[derive(Debug)]
pub(super) struct Reader {
    /// The places of the last row's fields, in their order: whoever writes many rows writes all of them alike.
    usual: Vec<usize>,
    /// Which columns the row has.
    found: Vec<bool>,
}

impl Reader {
    pub(super) fn new(shape: &Shape) -> Self {
        let places = 0..shape.columns.len();
        Self {
            found: vec![false; places.len()],
            usual: places.collect(),
        }
    }

    /// Reads a row, or says what is wrong with it. `cells` only gives its memory.
    pub(super) fn read<'a>(
        &mut self,
        shape: &Shape,
        text: &'a str,
        mut cells: Vec<Cell<'a>>,
    ) -> Result<Vec<Cell<'a>>, String> {
        if !text.trim_start().starts_with('{') {
            return Err(format!("is no object: {}", shortened(text)));
        }
        // Where a field is missing, this is left.
        self.found.fill(false);
        cells.clear();
        cells.resize(shape.columns.len(), Cell::Null);
        let fields = Fields {
            shape,
            reader: self,
            cells: &mut cells,
        };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        deserializer
            .deserialize_map(fields)
            .and_then(|()| deserializer.end())
            .map_err(|error| in_words(&error))?;
        let mut columns = shape.columns.iter().zip(&self.found);
        match columns.find(|(column, is_there)| !**is_there && !column.is_nullable) {
            Some((column, _)) => Err(format!("column {:?} is missing", column.name)),
            None => Ok(cells),
        }
    }
}

/// Without the place in the row, which is one line.
fn in_words(error: &serde_json::Error) -> String {
    let words = error.to_string();
    match words.rfind(" at line ") {
        Some(end) => words[..end].to_owned(),
        None => words,
    }
}

fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().find(|(at, _)| *at >= SHOWN_BYTES) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// Reads all fields.
struct Fields<'c, 'a> {
    shape: &'c Shape,
    reader: &'c mut Reader,
    cells: &'c mut [Cell<'a>],
}

impl<'a> Visitor<'a> for Fields<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let shape = self.shape;
        let Reader { usual, found } = self.reader;
        for field in 0.. {
            let expected = usual.get(field).copied();
            let Some(place) = map.next_key_seed(Name { shape, expected })? else {
                break;
            };
            let column = &shape.columns[place];
            if std::mem::replace(&mut found[place], true) {
                return Err(A::Error::custom(format!(
                    "column {:?} comes twice",
                    column.name
                )));
            }
            self.cells[place] = map.next_value_seed(Value { column }).map_err(|error| {
                let error = error.to_string();
                // What serde_json says by itself names no column.
                if error.starts_with("column ") {
                    A::Error::custom(error)
                } else {
                    A::Error::custom(format!("column {:?}: {error}", column.name))
                }
            })?;
            // There are never more fields than columns: one that comes twice ends it.
            usual[field] = place;
        }
        Ok(())
    }
}

/// Reads the name of a field as the place of its column.
struct Name<'s> {
    shape: &'s Shape,
    /// Whose name it probably is.
    expected: Option<usize>,
}

impl<'a> DeserializeSeed<'a> for Name<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<usize, E> {
        let columns = &self.shape.columns;
        if let Some(expected) = self.expected
            && columns[expected].name == name
        {
            return Ok(expected);
        }
        self.shape.places.get(name).copied().ok_or_else(|| {
            let known: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            E::custom(format!(
                "has a field {:?}, for which there is no column; columns are {}",
                shortened(name),
                known.join(", ")
            ))
        })
    }
}

/// Reads a value as its column wants it.
#[derive(Clone, Copy)]
struct Value<'s> {
    column: &'s Column,
}

impl<'a> DeserializeSeed<'a> for Value<'_> {
    type Value = Cell<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Cell<'a>, D::Error> {
        if self.column.kind != ColumnType::Json {
            return deserializer.deserialize_any(self);
        }
        let text = <&RawValue>::deserialize(deserializer)?.get();
        if text == "null" {
            return self.null();
        }
        match check_json_inside(text, LEVELS_AROUND) {
            Ok(()) => Ok(Cell::Json(text)),
            Err(JsonError::Nul) => Err(self.nul()),
            Err(problem) => {
                let name = &self.column.name;
                Err(D::Error::custom(format!("column {name:?} {problem}")))
            }
        }
    }
}

impl Value<'_> {
    fn wrong<E: Error>(self, what: &dyn fmt::Display) -> E {
        let Column { name, kind, .. } = self.column;
        E::custom(format!("column {name:?} is {what}, not {kind}"))
    }

    fn nul<E: Error>(self) -> E {
        let name = &self.column.name;
        E::custom(format!("column {name:?} contains a NUL character"))
    }

    fn null<'a, E: Error>(self) -> Result<Cell<'a>, E> {
        if self.column.is_nullable {
            return Ok(Cell::Null);
        }
        Err(E::custom(format!(
            "column {:?} is null, which it is not declared to be",
            self.column.name
        )))
    }

    fn number<'a, E: Error>(self, number: f64) -> Result<Cell<'a>, E> {
        match self.column.kind {
            ColumnType::Float => Ok(Cell::Float(number)),
            // As in JSON, so that 1.0 is seen not to be 1.
            ColumnType::Int | ColumnType::Bigint => Err(self.wrong(&format_args!("{number:?}"))),
            _ => Err(self.wrong(&"a number")),
        }
    }

    fn text<E: Error>(self, text: Cow<'_, str>) -> Result<Cell<'_>, E> {
        let not_this = || self.wrong(&format_args!("{:?}", shortened(&text)));
        match self.column.kind {
            // A bare NUL is no JSON, and a text with an escape is not borrowed.
            ColumnType::Text if matches!(&text, Cow::Owned(text) if text.contains('\0')) => {
                Err(self.nul())
            }
            ColumnType::Text => Ok(Cell::Text(text)),
            ColumnType::Timestamp => text
                .parse::<Timestamp>()
                .map(Cell::Timestamp)
                .map_err(|_| not_this()),
            // jiff would take the day of a moment as well.
            ColumnType::Date if text.len() != "2026-02-10".len() => Err(not_this()),
            ColumnType::Date => text.parse::<Date>().map(Cell::Date).map_err(|_| not_this()),
            _ => Err(self.wrong(&"text")),
        }
    }
}

impl<'a> Visitor<'a> for Value<'_> {
    type Value = Cell<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.column.kind)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Cell<'a>, E> {
        match self.column.kind {
            ColumnType::Bool => Ok(Cell::Bool(value)),
            _ => Err(self.wrong(&value)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Cell<'a>, E> {
        match self.column.kind {
            ColumnType::Bigint => Ok(Cell::Integer(value)),
            ColumnType::Int if i32::try_from(value).is_ok() => Ok(Cell::Integer(value)),
            ColumnType::Int => Err(self.wrong(&value)),
            // Above 2^53 the nearest number that there is, as everywhere in JSON.
            #[allow(clippy::cast_precision_loss)]
            _ => self.number(value as f64),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Cell<'a>, E> {
        match (i64::try_from(value), self.column.kind) {
            (Ok(value), _) => self.visit_i64(value),
            (Err(_), ColumnType::Int | ColumnType::Bigint) => Err(self.wrong(&value)),
            #[allow(clippy::cast_precision_loss)]
            (Err(_), _) => self.number(value as f64),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Cell<'a>, E> {
        self.number(value)
    }

    fn visit_borrowed_str<E: Error>(self, value: &'a str) -> Result<Cell<'a>, E> {
        self.text(Cow::Borrowed(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Cell<'a>, E> {
        self.text(Cow::Owned(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Cell<'a>, E> {
        self.null()
    }

    fn visit_seq<A: SeqAccess<'a>>(self, _: A) -> Result<Cell<'a>, A::Error> {
        Err(self.wrong(&"a list"))
    }

    fn visit_map<A: MapAccess<'a>>(self, _: A) -> Result<Cell<'a>, A::Error> {
        Err(self.wrong(&"an object"))
    }
}
