//! PostgreSQL's binary COPY format (PostgreSQL manual, COPY, "Binary Format"; the types as their `…_recv` functions
//! read them).

use std::sync::Arc;

use jiff::civil::{Date, date};
use shared::config::{Column, ColumnType};
use xxhash_rust::xxh3::Xxh3;

use crate::handler::Rows;
use crate::sink::SinkError;
use crate::sink::table::{Cell, Kept, Shape, days_since};

pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub(super) const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
const NULL: [u8; 4] = (-1_i32).to_be_bytes();
/// Bytes handed to the connection at a time.
pub(super) const CHUNK: usize = 64 * 1024;
/// From so many on, the next row, unless it is a long one, would not go in without more memory.
const FULL: usize = CHUNK - CHUNK / 8;
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
    /// What is sent before `chunk`. In pieces, because memory in one piece grows by being moved, and the allocator
    /// takes it from the system and gives it back for each large batch.
    full: Vec<Vec<u8>>,
    chunk: Vec<u8>,
    bytes: usize,
    count: usize,
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
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many bytes they have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is sent, piece by piece.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let chunks = self.full.iter().chain([&self.chunk]);
        chunks.map(Vec::as_slice).filter(|chunk| !chunk.is_empty())
    }

    /// The hash of what a batch stores; empty when it stores nothing.
    pub(in crate::sink) fn digest(&self) -> Vec<u8> {
        if self.count == 0 {
            return Vec::new();
        }
        let mut hash = Xxh3::new();
        self.chunks().for_each(|chunk| hash.update(chunk));
        hash.digest128().to_be_bytes().to_vec()
    }

    fn push(&mut self, cells: &[Cell<'_>], columns: &[Column]) {
        if self.chunk.len() > FULL {
            let next = Vec::with_capacity(CHUNK);
            self.full.push(std::mem::replace(&mut self.chunk, next));
        }
        let before = self.chunk.len();
        row(&mut self.chunk, cells.len());
        for (cell, column) in cells.iter().zip(columns) {
            encode_cell(&mut self.chunk, cell, column.kind);
        }
        self.bytes += self.chunk.len() - before;
        self.count += 1;
    }
}

impl Kept for CopyRows {
    fn add(&mut self, _: &str, cells: &[Cell<'_>], columns: &[Column]) {
        self.push(cells, columns);
    }

    fn count(&self) -> usize {
        self.count
    }

    fn into_rows(mut self) -> Rows {
        self.chunk.shrink_to_fit();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_many_chunks_are_sent_in_their_order_and_counted() {
        let column = Column::try_from("t text".to_owned()).unwrap();
        let (mut rows, mut expected) = (CopyRows::default(), Vec::new());
        assert_eq!(rows.chunks().count(), 0);
        for text in [1, 7, FULL, 100, CHUNK, 3 * CHUNK, 0].map(|length| "x".repeat(length)) {
            rows.push(
                &[Cell::Text(text.as_str().into())],
                std::slice::from_ref(&column),
            );
            row(&mut expected, 1);
            field(&mut expected, text.as_bytes());
        }
        let chunks: Vec<&[u8]> = rows.chunks().collect();
        assert_eq!(chunks.concat(), expected);
        assert_eq!(
            (chunks.len(), rows.bytes(), rows.count()),
            (4, expected.len(), 7)
        );
    }
}
