//! What is in a file.

use std::io::{self, Write};
use std::sync::Arc;

use super::parquet;
use crate::collect::{AnyJson, RowForm};
use crate::handler::Rows;
use crate::handlers::one_line;
use crate::json_rows::JsonRows;
use crate::sink::SinkError;
use crate::sink::table::{Fitting, Shape, documents};

/// How rows are written.
#[derive(Debug)]
pub enum Format {
    /// A JSON document a line.
    Ndjson,
    /// Parquet with these columns.
    Parquet(Arc<Shape>),
}

impl Format {
    pub(super) fn extension(&self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Parquet(_) => "parquet",
        }
    }

    /// In which rows are collected.
    pub(super) fn rows(&self) -> Arc<dyn RowForm> {
        match self {
            Self::Ndjson => Arc::new(AnyJson),
            Self::Parquet(shape) => Fitting::<JsonRows>::form(shape),
        }
    }

    /// Whether the rows can be written.
    pub(super) fn check(&self, rows: &Rows) -> Result<(), SinkError> {
        match self {
            Self::Ndjson => documents(rows).map(drop),
            Self::Parquet(shape) => shape.check(rows),
        }
    }

    /// Writes all rows of a file. They have been checked.
    pub(super) fn write(
        &self,
        all_rows: &[Arc<Rows>],
        out: &mut (impl Write + Send),
    ) -> io::Result<()> {
        match self {
            Self::Ndjson => write_lines(all_rows, out),
            Self::Parquet(shape) => parquet::write(shape, all_rows, out),
        }
    }
}

fn write_lines(all_rows: &[Arc<Rows>], out: &mut impl Write) -> io::Result<()> {
    for rows in all_rows {
        for row in documents(rows).map_err(io::Error::other)?.iter() {
            // What an endpoint answers may have lines of its own.
            out.write_all(one_line(row).as_bytes())?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}
