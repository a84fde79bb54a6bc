//! PostgreSQL's binary COPY format (PostgreSQL manual, COPY, "Binary Format"; the types as their `…_recv` functions
//! read them).

use std::sync::Arc;

use jiff::civil::{Date, date};
use shared::config::{Column, ColumnType};
use xxhash_rust::xxh3::xxh3_128;

use crate::handler::Rows;
use crate::sink::SinkError;
use crate::sink::table::{Cell, Kept, Shape, days_since};

pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub(super) const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
const NULL: [u8; 4] = (-1_i32).to_be_bytes();
/// Bytes handed to the connection at a time.
pub(super) const CHUNK: usize = 256 * 1024;
/// PostgreSQL counts from here.
const EPOCH: Date = date(2000, 1, 1);
/// The same in microseconds since 1970.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Begins a row of so many fields.
pub(super) fn row(out: &mut Vec<u8>, fields: usize) {
    let fields = i16::try_from(fields).unwrap_or(i16::MAX);
    out.extend_from_slice(&fields.to_be_bytes());
}

/// A value. PostgreSQL takes none of 2 GiB, and no row or slice has one.
pub(super) fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(&NULL);
}

/// Rows as COPY takes them, without header and trailer.
#[derive(Debug, Default)]
pub struct CopyRows {
    bytes: Vec<u8>,
    count: u64,
}

impl CopyRows {
    /// All of these rows.
    pub(super) fn encode(shape: &Shape, rows: &Rows) -> Result<Self, SinkError> {
        let mut encoded = Self::default();
        shape.each_row(rows, |cells| {
            encoded.push(cells, shape.columns());
            Ok(())
        })?;
        Ok(encoded)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What is sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The hash of what a batch stores; empty when it stores nothing.
    pub(in crate::sink) fn digest(&self) -> Vec<u8> {
        if self.bytes.is_empty() {
            return Vec::new();
        }
        xxh3_128(&self.bytes).to_be_bytes().to_vec()
    }

    fn push(&mut self, cells: &[Cell<'_>], columns: &[Column]) {
        row(&mut self.bytes, cells.len());
        for (cell, column) in cells.iter().zip(columns) {
            encode_cell(&mut self.bytes, cell, column.kind);
        }
        self.count += 1;
    }
}

impl Kept for CopyRows {
    fn add(&mut self, _: &str, cells: &[Cell<'_>], columns: &[Column]) {
        self.push(cells, columns);
    }

    fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    fn into_rows(mut self) -> Rows {
        self.bytes.shrink_to_fit();
        Rows::Copy(Arc::new(self))
    }
}

fn encode_cell(out: &mut Vec<u8>, cell: &Cell<'_>, kind: ColumnType) {
    match cell {
        Cell::Null => null(out),
        Cell::Text(text) => field(out, text.as_bytes()),
        Cell::Json(text) => field(out, text.as_bytes()),
        Cell::Integer(number) => match (kind, i32::try_from(*number)) {
            (ColumnType::Int, Ok(number)) => field(out, &number.to_be_bytes()),
            _ => field(out, &number.to_be_bytes()),
        },
        Cell::Float(number) => field(out, &number.to_be_bytes()),
        Cell::Bool(is_true) => field(out, &[u8::from(*is_true)]),
        Cell::Timestamp(timestamp) => {
            let micros = timestamp.as_microsecond() - EPOCH_MICROS;
            field(out, &micros.to_be_bytes());
        }
        Cell::Date(day) => field(out, &days_since(EPOCH, *day).to_be_bytes()),
    }
}
