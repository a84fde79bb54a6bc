//! Rows for columns that the config declares: JSON objects, each field into the column of its name. Every database
//! and file format writes the same [`Cell`]s; what does not fit is refused here, before any of them is bothered.

mod fitting;
mod read;

use std::borrow::Cow;
use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;
use shared::config::{Column, ColumnType};

pub(super) use self::fitting::{Fitting, Kept};
use self::read::Reader;
use super::SinkError;
use super::marker::other_form;
use crate::handler::Rows;
use crate::json_rows::JsonRows;

/// The columns of a table or file.
#[derive(Debug)]
pub struct Shape {
    columns: Vec<Column>,
    places: HashMap<String, usize>,
}

/// A value for a column, of its type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Text(Cow<'a, str>),
    /// For `int` and `bigint`.
    Integer(i64),
    Float(f64),
    Bool(bool),
    Timestamp(Timestamp),
    Date(Date),
    Json(&'a str),
}

/// A column that a table has.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Found {
    pub(super) name: String,
    /// The type, in the database's word.
    pub(super) kind: String,
    pub(super) is_required: bool,
    pub(super) has_default: bool,
}

impl Shape {
    /// Of these columns, in this order.
    #[must_use]
    pub fn new(columns: Vec<Column>) -> Self {
        let places = (0..).zip(&columns);
        let places = places
            .map(|(place, column)| (column.name.clone(), place))
            .collect();
        Self { columns, places }
    }

    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// All names in double quotes, for SQL.
    pub(super) fn quoted_names(&self) -> String {
        let names = self
            .columns
            .iter()
            .map(|column| format!("\"{}\"", column.name));
        names.collect::<Vec<_>>().join(", ")
    }

    /// What stands between the parentheses of CREATE TABLE.
    pub(super) fn definitions(&self, sql_type: fn(ColumnType) -> &'static str) -> String {
        let definition = |column: &Column| {
            let null = if column.is_nullable { "" } else { " NOT NULL" };
            format!("\"{}\" {}{null}", column.name, sql_type(column.kind))
        };
        let definitions: Vec<String> = self.columns.iter().map(definition).collect();
        definitions.join(", ")
    }

    /// Whether a table takes what is declared.
    pub(super) fn compare(
        &self,
        table: &str,
        sql_type: fn(ColumnType) -> &'static str,
        found: &[Found],
    ) -> Result<(), SinkError> {
        let wrong = |column: &str, problem: String| {
            Err(SinkError::Schema(format!(
                "table {table:?}, column {column:?}: {problem}; change the sink's columns or the table"
            )))
        };
        for column in &self.columns {
            let expected = sql_type(column.kind);
            match found.iter().find(|found| found.name == column.name) {
                None => return wrong(&column.name, "the table has no such column".to_owned()),
                Some(found) if !found.kind.eq_ignore_ascii_case(expected) => {
                    let kind = &found.kind;
                    return wrong(
                        &column.name,
                        format!("is {kind} in the table, and would have to be {expected}"),
                    );
                }
                Some(found) if found.is_required && column.is_nullable => {
                    let problem = "may be null in the config, and may not in the table";
                    return wrong(&column.name, problem.to_owned());
                }
                Some(_) => {}
            }
        }
        let is_left_out = |found: &&Found| {
            found.is_required && !found.has_default && !self.places.contains_key(&found.name)
        };
        match found.iter().find(is_left_out) {
            Some(found) => wrong(
                &found.name,
                "the table wants a value, and none is declared".to_owned(),
            ),
            None => Ok(()),
        }
    }

    /// Hands the cells of each row to `take`, in the order of the columns.
    pub(super) fn each_row<'a>(
        &self,
        rows: &'a Rows,
        mut take: impl FnMut(&[Cell<'a>]) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        let mut reader = Reader::new(self);
        let mut cells = Vec::new();
        for (index, row) in documents(rows)?.iter().enumerate() {
            cells = reader.read(self, row, cells).map_err(unfit(index))?;
            take(&cells)?;
        }
        Ok(())
    }

    /// The cells of one row.
    pub(super) fn read<'a>(&self, index: usize, row: &'a str) -> Result<Vec<Cell<'a>>, SinkError> {
        let mut reader = Reader::new(self);
        reader.read(self, row, Vec::new()).map_err(unfit(index))
    }

    /// Whether all rows fit.
    pub(super) fn check(&self, rows: &Rows) -> Result<(), SinkError> {
        self.each_row(rows, |_| Ok(()))
    }
}

fn unfit(index: usize) -> impl Fn(String) -> SinkError {
    move |problem| SinkError::Unfit(format!("row {index}: {problem}"))
}

/// The rows of a handler that gives JSON documents.
pub(super) fn documents(rows: &Rows) -> Result<&JsonRows, SinkError> {
    static NONE: JsonRows = JsonRows::NONE;
    match rows {
        Rows::None => Ok(&NONE),
        Rows::Json(rows) => Ok(rows),
        Rows::Slice(_) => Err(SinkError::Unfit(
            "slices of Search Analytics go into the default sink alone".to_owned(),
        )),
        Rows::Copy(_) => Err(other_form()),
    }
}

/// Days from one to the other.
pub(super) fn days_since(epoch: Date, day: Date) -> i32 {
    (day - epoch).get_days()
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use serde_json::value::RawValue;
    use shared::search_console::SearchType;

    use super::*;
    use crate::jobs::search_console::slice_rows::{Slice, SliceId, SliceRows};

    fn shape(columns: &[&str]) -> Shape {
        let column = |text: &&str| Column::try_from((*text).to_owned()).unwrap();
        Shape::new(columns.iter().map(column).collect())
    }

    fn all() -> Shape {
        shape(&[
            "t text",
            "i int",
            "b bigint",
            "f float",
            "y bool",
            "at timestamp",
            "day date",
            "j json",
            "n text null",
        ])
    }

    /// A row that fits, with one field replaced, or left out.
    fn row(field: &str, value: Option<&str>) -> String {
        let fields = [
            ("t", "\"x\""),
            ("i", "1"),
            ("b", "2"),
            ("f", "1.5"),
            ("y", "true"),
            ("at", "\"2026-02-10T08:00:00.000001Z\""),
            ("day", "\"2026-02-10\""),
            ("j", "{\"a\": [1.50]}"),
        ];
        let mut text: Vec<String> = Vec::new();
        for (name, usual) in fields {
            let value = if name == field { value } else { Some(usual) };
            text.extend(value.map(|value| format!("\"{name}\":{value}")));
        }
        if !fields.iter().any(|(name, _)| *name == field) {
            text.extend(value.map(|value| format!("\"{field}\":{value}")));
        }
        format!("{{{}}}", text.join(","))
    }

    fn documents_of(texts: &[&str]) -> Rows {
        let document = |text: &&str| RawValue::from_string((*text).to_owned()).unwrap();
        Rows::Json(texts.iter().map(document).collect())
    }

    fn problem(text: &str) -> String {
        let rows = documents_of(&[&row("t", Some("\"fine\"")), text]);
        match all().check(&rows) {
            Err(SinkError::Unfit(problem)) => problem,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn fields_find_their_columns_in_any_order() {
        let shape = shape(&["a text", "b bigint null", "c json"]);
        let rows = documents_of(&[r#"{"c": {"x": 1.50}, "a": "ä\n\"q\""}"#]);
        shape
            .each_row(&rows, |cells| {
                let expected = [
                    Cell::Text("ä\n\"q\"".into()),
                    Cell::Null,
                    Cell::Json("{\"x\": 1.50}"),
                ];
                assert_eq!(cells, expected);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn rows_need_not_be_alike() {
        let shape = shape(&["a bigint null", "b bigint null", "c bigint null"]);
        let rows = documents_of(&[
            r#"{"c":3,"a":1,"b":2}"#,
            r#"{"c":3,"a":1,"b":2}"#,
            r#"{"a":1}"#,
            "{}",
            r#"{"b":2,"c":3,"a":1}"#,
        ]);
        let mut read = Vec::new();
        let keep = |cells: &[Cell<'_>]| {
            let number = |cell: &Cell<'_>| match cell {
                Cell::Integer(number) => *number,
                _ => 0,
            };
            read.push(cells.iter().map(number).collect::<Vec<_>>());
            Ok(())
        };
        shape.each_row(&rows, keep).unwrap();
        let (whole, first, none) = (vec![1, 2, 3], vec![1, 0, 0], vec![0, 0, 0]);
        assert_eq!(read, [whole.clone(), whole.clone(), first, none, whole]);
    }

    #[test]
    fn values_at_the_edge_fit() {
        for (field, value) in [
            ("i", "-2147483648"),
            ("b", "9223372036854775807"),
            ("b", "-9223372036854775808"),
            ("f", "1"),
            ("f", "-0.0"),
            ("f", "18446744073709551615"),
            ("f", "1.7976931348623157e308"),
            ("at", "\"2026-02-10T10:00:00+02:00\""),
            ("at", "\"2026-02-10 10:00:00-08\""),
            ("t", "\"\\ud83d\\ude00\""),
            ("t", "\"\\\\u0000\""),
            ("n", "null"),
        ] {
            let text = row(field, Some(value));
            let rows = documents_of(&[&text]);
            all()
                .check(&rows)
                .unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_row_and_column() {
        for (field, value, expected) in [
            ("t", "1", "column \"t\" is a number, not text"),
            ("t", "null", "column \"t\" is null"),
            ("t", "\"a\\u0000b\"", "column \"t\" contains a NUL"),
            ("j", "[\"a\\u0000b\"]", "column \"j\" contains a NUL"),
            ("i", "2147483648", "column \"i\" is 2147483648"),
            ("i", "1.0", "column \"i\" is 1.0"),
            ("i", "\"1\"", "column \"i\" is text, not int"),
            (
                "b",
                "9223372036854775808",
                "column \"b\" is 9223372036854775808",
            ),
            ("b", "1e30", "column \"b\" is 1e30"),
            ("f", "\"NaN\"", "column \"f\" is text, not float"),
            ("f", "null", "column \"f\" is null"),
            ("f", "1e999", "column \"f\": number out of range"),
            ("y", "0", "column \"y\" is a number, not bool"),
            (
                "at",
                "\"2026-02-10\"",
                "column \"at\" is \"2026-02-10\", not timestamp",
            ),
            ("at", "\"2026-02-10T08:00:00\"", "not timestamp"),
            (
                "at",
                "1770000000",
                "column \"at\" is a number, not timestamp",
            ),
            (
                "day",
                "\"2026-02-30\"",
                "column \"day\" is \"2026-02-30\", not date",
            ),
            ("day", "\"2026-02-10T08:00:00Z\"", "not date"),
            ("day", "{}", "column \"day\" is an object, not date"),
            ("n", "[]", "column \"n\" is a list, not text"),
            (
                "x",
                "1",
                "field \"x\", for which there is no column; columns are t, i, b",
            ),
        ] {
            let problem = problem(&row(field, Some(value)));
            assert!(
                problem.starts_with("row 1: ") && problem.contains(expected),
                "{field} {value}: {problem}"
            );
            assert!(!problem.contains(" at line "), "{problem}");
        }
        assert!(problem(&row("b", None)).contains("column \"b\" is missing"));
        assert!(problem("[1]").contains("is no object"));
        assert!(problem("null").contains("is no object"));
        let twice = row("n", Some("\"a\",\"n\":\"b\""));
        assert!(problem(&twice).contains("column \"n\" comes twice"));
        let long = row("at", Some(&format!("{:?}", "x".repeat(1_000))));
        assert!(problem(&long).len() < 200);
    }

    #[test]
    fn slices_are_no_documents() {
        let id = SliceId {
            property: "sc-domain:example.com".to_owned(),
            search_type: SearchType::Web,
            dimensions: "page".parse().unwrap(),
            date: date(2026, 2, 10),
        };
        let slice = Slice {
            id,
            rows: SliceRows::new(1),
            is_final: true,
            truncated: false,
            aggregation: None,
            api_calls: 1,
            remark: None,
            fetched_at: Timestamp::UNIX_EPOCH,
        };
        let refused = all().check(&Rows::Slice(Box::new(slice)));
        assert!(matches!(refused, Err(SinkError::Unfit(_))), "{refused:?}");
    }
}
