//! From bytes to batches: cuts the stream into lines, hashes them, reads each.

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::{Key, PipelineName};
use shared::payload;

use super::{LineProblem, SubmissionError};
use crate::ledger::{NewBatch, NewRun};

/// Longest line: the largest payload, its key, and JSON around them.
pub(super) const MAX_LINE_BYTES: usize = payload::MAX_PAYLOAD_BYTES + 64 * 1024;

/// Bytes that are hashed at once, as far as lines are not longer.
const HASHED_BYTES: usize = 64 * 1024;
/// What some editors put before the first line.
const BOM: &[u8] = b"\xef\xbb\xbf";

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    key: Option<String>,
    payload: Box<RawValue>,
}

/// One line; `None` for a blank one.
pub(super) fn read_line(
    line: &[u8],
    pipeline: &PipelineName,
    due: Timestamp,
) -> Result<Option<NewBatch>, LineProblem> {
    let text = std::str::from_utf8(line).map_err(|e| LineProblem::NotUtf8(e.valid_up_to() + 1))?;
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let Line { key, payload } = serde_json::from_str(text)?;
    payload::check(&payload)?;
    let key = key
        .as_deref()
        .map_or_else(|| Ok(Key::default()), Key::new)?;
    Ok(Some(NewBatch {
        id: BatchId::generate(),
        pipeline: pipeline.clone(),
        key,
        payload,
        due,
    }))
}

/// Cuts a byte stream into lines and hashes them, blank ones and line ends aside, after what was said of them
/// all.
#[derive(Default)]
pub(super) struct Lines {
    rest: BytesMut,
    /// How much of `rest` is known to hold no newline: long lines arrive in many pieces.
    searched: usize,
    number: usize,
    /// Lines that are to be hashed: many at once cost much less than one by one.
    unhashed: Vec<u8>,
    hasher: blake3::Hasher,
}

impl Lines {
    /// The lines of this run.
    pub(super) fn of(run: &NewRun) -> Self {
        let said = (
            run.pipeline.as_str(),
            run.priority.as_str(),
            run.webhook.as_deref(),
        );
        let mut lines = Self::default();
        lines
            .hasher
            .update(serde_json::json!(said).to_string().as_bytes());
        lines
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// The next whole line and its number; the last one needs no newline when the stream has ended.
    pub(super) fn next(&mut self, ended: bool) -> Result<Option<(usize, Bytes)>, SubmissionError> {
        let newline = self.rest[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n');
        let searched = std::mem::replace(&mut self.searched, 0);
        let mut line = match newline {
            Some(end) => {
                let line = self.rest.split_to(searched + end);
                let _newline = self.rest.split_to(1);
                line
            }
            None if ended && !self.rest.is_empty() => self.rest.split(),
            None if self.rest.len() > MAX_LINE_BYTES => {
                return Err(SubmissionError::Line {
                    line: self.number + 1,
                    problem: LineProblem::TooLong,
                });
            }
            None => {
                self.searched = self.rest.len();
                return Ok(None);
            }
        };
        if self.number == 0 && line.starts_with(BOM) {
            let _mark = line.split_to(BOM.len());
        }
        self.number += 1;
        if line.len() > MAX_LINE_BYTES {
            return Err(SubmissionError::Line {
                line: self.number,
                problem: LineProblem::TooLong,
            });
        }
        let content = line.trim_ascii();
        if !content.is_empty() {
            self.unhashed.extend_from_slice(content);
            self.unhashed.push(b'\n');
            if self.unhashed.len() >= HASHED_BYTES {
                self.hash();
            }
        }
        Ok(Some((self.number, line.freeze())))
    }

    fn hash(&mut self) {
        self.hasher.update(&self.unhashed);
        self.unhashed.clear();
    }

    pub(super) fn digest(mut self) -> [u8; 32] {
        self.hash();
        *self.hasher.finalize().as_bytes()
    }
}
