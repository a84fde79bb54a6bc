//! The columns of a table: `"clicks bigint"`, `"referrer text null"`.

use std::fmt;

use serde::Deserialize;

use super::sinks::is_identifier;

/// A column and what it takes, written as in SQL: a name, a type, and `null` if it may be without a value.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Column {
    /// Its name, which is that of the field in a row.
    pub name: String,
    /// What it holds.
    pub kind: ColumnType,
    /// Whether a row may leave it out, or say `null`.
    pub is_nullable: bool,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// Text without NUL characters.
    Text,
    /// A whole number of 32 bits.
    Int,
    /// A whole number of 64 bits.
    Bigint,
    /// A number of 64 bits; JSON has neither NaN nor infinity.
    Float,
    /// `true` or `false`.
    Bool,
    /// A moment, in RFC 3339 with its offset (`"2026-02-10T08:00:00Z"`), to the microsecond.
    Timestamp,
    /// A day, `"2026-02-10"`.
    Date,
    /// Any JSON, as it was written.
    Json,
}

impl ColumnType {
    /// Each with its name in the config.
    const NAMES: [(&'static str, Self); 8] = [
        ("text", Self::Text),
        ("int", Self::Int),
        ("bigint", Self::Bigint),
        ("float", Self::Float),
        ("bool", Self::Bool),
        ("timestamp", Self::Timestamp),
        ("date", Self::Date),
        ("json", Self::Json),
    ];
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.iter().find(|(_, kind)| kind == self);
        f.write_str(named.map_or("?", |(name, _)| name))
    }
}

impl TryFrom<String> for Column {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (name, kind, is_nullable) = match words[..] {
            [name, kind] => (name, kind, false),
            [name, kind, "null"] => (name, kind, true),
            _ => {
                return Err(format!(
                    "{text:?} is no column: write its name and type, such as \"clicks bigint\", and null if it may \
                     be without a value: \"referrer text null\""
                ));
            }
        };
        if !is_identifier(name) {
            return Err(format!(
                "{name:?} is no column name: use letters, digits and '_', at most 63"
            ));
        }
        let kind = ColumnType::NAMES.iter().find(|(known, _)| *known == kind);
        let (_, kind) = kind.ok_or_else(|| {
            let known: Vec<&str> = ColumnType::NAMES.iter().map(|(name, _)| *name).collect();
            format!(
                "{text:?} has no type that a column can have: use one of {}",
                known.join(", ")
            )
        })?;
        Ok(Self {
            name: name.to_owned(),
            kind: *kind,
            is_nullable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(text: &str) -> Result<Column, String> {
        Column::try_from(text.to_owned())
    }

    #[test]
    fn a_column_is_a_name_and_a_type() {
        for (name, kind) in ColumnType::NAMES {
            assert_eq!(kind.to_string(), name);
            let read = column(&format!("x {name}")).unwrap();
            assert_eq!((read.kind, read.is_nullable), (kind, false));
        }
        assert!(column("referrer  text null").unwrap().is_nullable);
    }

    #[test]
    fn what_is_no_column_is_said() {
        for (text, expected) in [
            ("x", "name and type"),
            ("x text not null", "name and type"),
            ("x varchar", "bigint"),
            ("a-b text", "letters"),
        ] {
            let problem = column(text).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
