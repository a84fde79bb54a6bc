//! Cuts the input into lines, of which none can eat the memory.

use std::io::{BufRead, Read};

use shared::payload::MAX_PAYLOAD_BYTES;

use super::ItemsError;

/// Longest line that is read: the largest payload, and room for the spaces around it.
const MAX_LINE_BYTES: u64 = MAX_PAYLOAD_BYTES as u64 + 1024;
/// Some editors write it in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The lines that hold something, with their numbers.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            number: 0,
        }
    }

    /// The next line that is not blank, without the spaces around it; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, &[u8])>, ItemsError> {
        loop {
            self.buffer.clear();
            let mut bounded = self.input.by_ref().take(MAX_LINE_BYTES);
            let read = bounded.read_until(b'\n', &mut self.buffer)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bounded.limit() == 0 && !self.buffer.ends_with(b"\n") {
                return Err(ItemsError::LongLine { line: self.number });
            }
            if self.number == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
                self.buffer.drain(..BYTE_ORDER_MARK.len());
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        Ok(Some((self.number, self.buffer.trim_ascii())))
    }
}
