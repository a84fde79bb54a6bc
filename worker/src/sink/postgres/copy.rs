//! Writes a slice's rows as PostgreSQL's binary COPY format, straight from where they lie.
//! (PostgreSQL manual, COPY, "Binary Format".)

use crate::jobs::search_console::slice_rows::{Row, SliceRows};

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
const NULL: [u8; 4] = (-1_i32).to_be_bytes();
/// Bytes handed to the connection at a time.
const CHUNK: usize = 256 * 1024;

/// A slice on its way into its table, chunk by chunk.
pub(super) struct Encoder<'a> {
    rows: &'a SliceRows,
    slice: i32,
    /// Keys of a row that are columns: all, or none where the day is the only one.
    keys: usize,
    next: usize,
    is_finished: bool,
    buffer: Vec<u8>,
}

impl<'a> Encoder<'a> {
    /// Columns: clicks, impressions, position, slice, and `keys` texts.
    pub(super) fn new(rows: &'a SliceRows, slice: i32, keys: usize) -> Self {
        let mut buffer = Vec::with_capacity(CHUNK + CHUNK / 4);
        buffer.extend_from_slice(HEADER);
        Self {
            rows,
            slice,
            keys,
            next: 0,
            is_finished: false,
            buffer,
        }
    }

    /// The next bytes to send; `None` after the last.
    pub(super) fn next_chunk(&mut self) -> Option<&[u8]> {
        if self.is_finished {
            return None;
        }
        if self.next > 0 {
            self.buffer.clear();
        }
        while self.next < self.rows.len() && self.buffer.len() < CHUNK {
            self.write(&self.rows.row(self.next));
            self.next += 1;
        }
        if self.next == self.rows.len() {
            self.buffer.extend_from_slice(&TRAILER);
            self.is_finished = true;
        }
        Some(&self.buffer)
    }

    fn write(&mut self, row: &Row<'_>) {
        const FIXED_COLUMNS: i16 = 4;
        let columns = FIXED_COLUMNS + i16::try_from(self.keys).unwrap_or(i16::MAX);
        let out = &mut self.buffer;
        out.extend_from_slice(&columns.to_be_bytes());
        field(out, &row.numbers.clicks.to_be_bytes());
        field(out, &row.numbers.impressions.to_be_bytes());
        match row.numbers.position {
            Some(position) => field(out, &position.to_be_bytes()),
            None => out.extend_from_slice(&NULL),
        }
        field(out, &self.slice.to_be_bytes());
        for key in row.keys().take(self.keys) {
            field(out, key.as_bytes());
        }
    }
}

// A text of a slice is shorter than 4 GiB in all, and one of 2 GiB does not fit PostgreSQL anyway.
fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::search_console::slice_rows::Numbers;

    #[test]
    fn chunks_together_are_one_copy_stream() {
        let mut rows = SliceRows::new(1);
        let text = "x".repeat(CHUNK);
        for position in [Some(1.0), None] {
            rows.push(
                &[&text],
                Numbers {
                    clicks: 1,
                    impressions: 2,
                    position,
                },
            )
            .unwrap();
        }
        let mut encoder = Encoder::new(&rows, 7, 1);
        let mut all = Vec::new();
        let mut chunks = 0;
        while let Some(chunk) = encoder.next_chunk() {
            all.extend_from_slice(chunk);
            chunks += 1;
        }
        let row = 2 + 12 + 12 + 8 + 4 + CHUNK;
        assert_eq!(all.len(), 19 + (row + 12) + (row + 4) + 2);
        assert_eq!(
            (chunks, all.starts_with(HEADER), all.ends_with(&TRAILER)),
            (2, true, true)
        );
    }

    #[test]
    fn an_empty_slice_is_header_and_trailer() {
        let rows = SliceRows::new(1);
        let mut encoder = Encoder::new(&rows, 7, 1);
        assert_eq!(encoder.next_chunk().unwrap().len(), 21);
        assert!(encoder.next_chunk().is_none());
    }
}
