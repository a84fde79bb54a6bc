//! Writes a slice's rows as PostgreSQL's binary COPY format, straight from where they lie.

use super::binary::{CHUNK, HEADER, TRAILER, field, null, row};
use crate::jobs::search_console::slice_rows::{Row, SliceRows};

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

    fn write(&mut self, values: &Row<'_>) {
        const FIXED_COLUMNS: usize = 4;
        let out = &mut self.buffer;
        row(out, FIXED_COLUMNS + self.keys);
        field(out, &values.numbers.clicks.to_be_bytes());
        field(out, &values.numbers.impressions.to_be_bytes());
        match values.numbers.position {
            Some(position) => field(out, &position.to_be_bytes()),
            None => null(out),
        }
        field(out, &self.slice.to_be_bytes());
        for key in values.keys().take(self.keys) {
            field(out, key.as_bytes());
        }
    }
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
