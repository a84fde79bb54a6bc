//! NDJSON → rows, within limits and in the [form](RowForm) of the pipeline's sink. Reaching a limit is final for the
//! batch; a bad line is only remembered, because whoever wrote it may still say something better about why it is broken.

use std::fmt;

use memchr::memchr;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::collect::{BAD_OUTPUT, Collector, RowForm};
use crate::handler::{HandlerError, Rows};

/// Most bytes of output.
pub(super) const MAX_OUTPUT_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes in a line, and so in a row.
pub(super) const MAX_LINE_BYTES: usize = 1024 * 1024;
/// Most rows: they are written in one transaction.
pub(super) const MAX_ROWS: usize = 100_000;
/// How much is read at a time.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// More output than a batch may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flood {
    #[error("the output has more than {MAX_OUTPUT_BYTES} bytes: make batches smaller")]
    Bytes,
    #[error(
        "line {0} of the output has more than {MAX_LINE_BYTES} bytes: a row is one JSON document on one line"
    )]
    Line(usize),
    #[error("the output has more than {MAX_ROWS} rows: make batches smaller")]
    Rows,
}

impl From<Flood> for HandlerError {
    fn from(flood: Flood) -> Self {
        Self::fail("output_too_large", flood.to_string())
    }
}

/// Cuts pieces of output into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The line that has not ended yet.
    line: Vec<u8>,
    ended: usize,
    bytes: usize,
}

impl Lines {
    /// Hands each line that ends in this piece to `take`, with its number and without blanks around it. Blank
    /// lines are counted alone.
    pub(super) fn push(
        &mut self,
        mut piece: &[u8],
        mut take: impl FnMut(usize, &[u8]) -> Result<(), Flood>,
    ) -> Result<(), Flood> {
        self.bytes += piece.len();
        if self.bytes > MAX_OUTPUT_BYTES {
            return Err(Flood::Bytes);
        }
        while let Some(end) = memchr(b'\n', piece) {
            let (ended, rest) = (&piece[..end], &piece[end + 1..]);
            if self.line.is_empty() && end <= MAX_LINE_BYTES {
                // Most lines are whole here, and need not be copied.
                self.ended += 1;
                hand_over(ended, self.ended, &mut take)?;
            } else {
                self.extend(ended)?;
                self.end(&mut take)?;
            }
            piece = rest;
        }
        self.extend(piece)
    }

    /// The end of the output ends its last line.
    pub(super) fn end(
        &mut self,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), Flood>,
    ) -> Result<(), Flood> {
        self.ended += 1;
        hand_over(&self.line, self.ended, &mut take)?;
        self.line.clear();
        Ok(())
    }

    /// Whether a line has begun.
    pub(super) fn is_within_line(&self) -> bool {
        !self.line.is_empty()
    }

    fn extend(&mut self, piece: &[u8]) -> Result<(), Flood> {
        if self.line.len() + piece.len() > MAX_LINE_BYTES {
            return Err(Flood::Line(self.ended + 1));
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }
}

fn hand_over(
    line: &[u8],
    number: usize,
    take: &mut impl FnMut(usize, &[u8]) -> Result<(), Flood>,
) -> Result<(), Flood> {
    match line.trim_ascii() {
        [] => Ok(()),
        line => take(number, line),
    }
}

/// Rows that are accepted so far.
#[derive(Debug)]
pub(super) struct Accepted {
    rows: Box<dyn Collector>,
    /// What is wrong with the first bad line.
    problem: Option<HandlerError>,
}

impl Accepted {
    pub(super) fn new(form: &dyn RowForm) -> Self {
        Self {
            rows: form.collector(),
            problem: None,
        }
    }

    /// Takes the row of this line, unless a line before it was bad.
    pub(super) fn push(&mut self, line: usize, row: &str) -> Result<(), Flood> {
        if self.problem.is_some() {
            return Ok(());
        }
        if self.rows.count() == MAX_ROWS {
            return Err(Flood::Rows);
        }
        if let Err(problem) = self.rows.push(row) {
            self.fail(problem.reason(), line, &problem);
        }
        Ok(())
    }

    /// Remembers what is wrong with a line, unless something was wrong before.
    pub(super) fn object(&mut self, line: usize, problem: &str) {
        self.fail(BAD_OUTPUT, line, &problem);
    }

    /// The rows; or, if a line was bad, what is wrong with the first such line.
    pub(super) fn into_rows(self) -> Result<Rows, HandlerError> {
        match self.problem {
            Some(problem) => Err(problem),
            None => Ok(self.rows.finish()),
        }
    }

    fn fail(&mut self, reason: &'static str, line: usize, problem: &dyn fmt::Display) {
        self.problem.get_or_insert_with(|| {
            HandlerError::fail(reason, format!("line {line} of the output {problem}"))
        });
    }
}

/// Collects rows from pieces of NDJSON.
#[derive(Debug)]
pub(super) struct RowReader {
    lines: Lines,
    accepted: Accepted,
}

impl RowReader {
    pub(super) fn new(form: &dyn RowForm) -> Self {
        Self {
            lines: Lines::default(),
            accepted: Accepted::new(form),
        }
    }

    /// Reads to the end. A pipe that breaks has ended.
    pub(super) async fn read(&mut self, mut stdout: impl AsyncRead + Unpin) -> Result<(), Flood> {
        let mut piece = vec![0; READ_BYTES];
        while let Ok(length @ 1..) = stdout.read(&mut piece).await {
            self.push(&piece[..length])?;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Flood> {
        let accepted = &mut self.accepted;
        self.lines
            .push(piece, |number, line| take_row(accepted, number, line))
    }

    /// The rows; or, if a line was no row, what is wrong with the first such line.
    pub(super) fn into_rows(self) -> Result<Rows, HandlerError> {
        let Self {
            mut lines,
            mut accepted,
        } = self;
        lines.end(|number, line| take_row(&mut accepted, number, line))?;
        accepted.into_rows()
    }
}

fn take_row(accepted: &mut Accepted, number: usize, line: &[u8]) -> Result<(), Flood> {
    if let Ok(row) = std::str::from_utf8(line) {
        return accepted.push(number, row);
    }
    accepted.object(number, "is not UTF-8");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::AnyJson;

    /// Pushes the text in pieces of every small size, which must not matter.
    fn rows(text: &[u8]) -> Result<Vec<String>, String> {
        let read = |size: usize| {
            let mut reader = RowReader::new(&AnyJson);
            for piece in text.chunks(size) {
                reader.push(piece).unwrap();
            }
            match reader.into_rows() {
                Ok(Rows::Json(rows)) => Ok(rows.iter().map(str::to_owned).collect()),
                Err(HandlerError::Fail { reason, error }) => {
                    assert_eq!(reason, "bad_output");
                    Err(error)
                }
                other => panic!("{other:?}"),
            }
        };
        let whole = read(text.len().max(1));
        for size in 1..=5 {
            assert_eq!(read(size), whole);
        }
        whole
    }

    #[test]
    fn a_line_is_a_row() {
        assert_eq!(rows(b"").unwrap(), Vec::<String>::new());
        assert_eq!(
            rows(b"{\"a\": 1}\n\n  [2]\r\n\"x\"").unwrap(),
            ["{\"a\": 1}", "[2]", "\"x\""]
        );
        assert_eq!(
            rows(b"18446744073709551615\n").unwrap(),
            ["18446744073709551615"]
        );
    }

    #[test]
    fn the_first_line_that_is_no_row_is_named() {
        let cases: [(&[u8], &str); 9] = [
            (
                b"1\n{\"half\":\n",
                "line 2 of the output is not one JSON value",
            ),
            (b"{\"half\":", "line 1 of the output is not one JSON value"),
            (
                b"1\n1 2\nnope\n",
                "line 2 of the output is not one JSON value: trailing characters",
            ),
            (b"NaN\n", "line 1"),
            (b"Infinity\n", "line 1"),
            (b"\n\n\"\xff\"\n", "line 3 of the output is not UTF-8"),
            (b"\"\\u0000\"\n", "contains a NUL"),
            (
                b"\"\\ud800\"\n",
                "line 1 of the output is not one JSON value",
            ),
            (b"1e999\n", "line 1 of the output is not one JSON value"),
        ];
        for (text, expected) in cases {
            let problem = rows(text).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        assert!(rows(&[b'['; 10_000]).unwrap_err().contains("nested deeper"));
    }

    #[test]
    fn every_limit_is_reached_and_not_passed() {
        let mut reader = RowReader::new(&AnyJson);
        reader.push(&vec![b'1'; MAX_LINE_BYTES]).unwrap();
        assert_eq!(reader.push(b"1"), Err(Flood::Line(1)));

        let mut reader = RowReader::new(&AnyJson);
        reader.push("1\n".repeat(MAX_ROWS).as_bytes()).unwrap();
        reader.push(b"\n \n").unwrap();
        assert_eq!(reader.push(b"1\n"), Err(Flood::Rows));

        let mut reader = RowReader::new(&AnyJson);
        let blank = vec![b'\n'; MAX_LINE_BYTES];
        for _ in 0..MAX_OUTPUT_BYTES / MAX_LINE_BYTES {
            reader.push(&blank).unwrap();
        }
        assert_eq!(reader.push(b"\n"), Err(Flood::Bytes));
    }
}
