//! stdout → rows, within limits. Reaching one is final for the batch; a bad line is only remembered, because
//! the exit code may say something better about why the output is broken.

use serde_json::value::RawValue;
use shared::payload::check_json;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Most bytes on stdout.
pub(super) const MAX_STDOUT_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes in a row.
pub(super) const MAX_ROW_BYTES: usize = 1024 * 1024;
/// Most rows: they are written in one transaction.
pub(super) const MAX_ROWS: usize = 100_000;
/// How much is read at a time.
const READ_BYTES: usize = 64 * 1024;

/// More output than a batch may have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flood {
    #[error("the command wrote more than {MAX_STDOUT_BYTES} bytes to stdout: make batches smaller")]
    Bytes,
    #[error(
        "line {0} of stdout has more than {MAX_ROW_BYTES} bytes: a row is one JSON document on one line"
    )]
    Row(usize),
    #[error("the command wrote more than {MAX_ROWS} rows to stdout: make batches smaller")]
    Rows,
}

/// Collects rows from pieces of stdout.
#[derive(Debug, Default)]
pub(super) struct RowReader {
    rows: Vec<Box<RawValue>>,
    /// What is wrong with the first bad line.
    problem: Option<String>,
    /// The line that has not ended yet.
    line: Vec<u8>,
    lines: usize,
    bytes: usize,
}

impl RowReader {
    /// Reads to the end. A pipe that breaks has ended.
    pub(super) async fn read(&mut self, mut stdout: impl AsyncRead + Unpin) -> Result<(), Flood> {
        let mut piece = vec![0; READ_BYTES];
        while let Ok(length @ 1..) = stdout.read(&mut piece).await {
            self.push(&piece[..length])?;
        }
        Ok(())
    }

    /// The rows; or, if a line was no row, what is wrong with the first such line.
    pub(super) fn into_rows(mut self) -> Result<Vec<Box<RawValue>>, String> {
        if self.end_line().is_err() {
            return Err(Flood::Rows.to_string());
        }
        match self.problem {
            Some(problem) => Err(problem),
            None => Ok(self.rows),
        }
    }

    fn push(&mut self, mut piece: &[u8]) -> Result<(), Flood> {
        self.bytes += piece.len();
        if self.bytes > MAX_STDOUT_BYTES {
            return Err(Flood::Bytes);
        }
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.extend_line(&piece[..end])?;
            self.end_line()?;
            piece = &piece[end + 1..];
        }
        self.extend_line(piece)
    }

    fn extend_line(&mut self, piece: &[u8]) -> Result<(), Flood> {
        if self.line.len() + piece.len() > MAX_ROW_BYTES {
            return Err(Flood::Row(self.lines + 1));
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), Flood> {
        self.lines += 1;
        let line = self.line.trim_ascii();
        if !line.is_empty() && self.problem.is_none() {
            match row(line) {
                Ok(_) if self.rows.len() == MAX_ROWS => return Err(Flood::Rows),
                Ok(row) => self.rows.push(row),
                Err(problem) => {
                    self.problem = Some(format!("line {} of stdout {problem}", self.lines));
                }
            }
        }
        self.line.clear();
        Ok(())
    }
}

fn row(line: &[u8]) -> Result<Box<RawValue>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())?;
    check_json(text).map_err(|error| error.to_string())?;
    RawValue::from_string(text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes the text in pieces of every small size, which must not matter.
    fn rows(text: &[u8]) -> Result<Vec<String>, String> {
        let read = |size: usize| {
            let mut reader = RowReader::default();
            for piece in text.chunks(size) {
                reader.push(piece).map_err(|flood| flood.to_string())?;
            }
            let rows = reader.into_rows()?;
            Ok(rows.iter().map(|row| row.get().to_owned()).collect())
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
            (b"1\n{\"half\":\n", "line 2 of stdout is not one JSON value"),
            (b"{\"half\":", "line 1 of stdout is not one JSON value"),
            (
                b"1\n1 2\nnope\n",
                "line 2 of stdout is not one JSON value: trailing characters",
            ),
            (b"NaN\n", "line 1"),
            (b"Infinity\n", "line 1"),
            (b"\n\n\"\xff\"\n", "line 3 of stdout is not UTF-8"),
            (b"\"\\u0000\"\n", "contains a NUL"),
            (b"\"\\ud800\"\n", "line 1 of stdout is not one JSON value"),
            (b"1e999\n", "line 1 of stdout is not one JSON value"),
        ];
        for (text, expected) in cases {
            let problem = rows(text).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        assert!(rows(&[b'['; 10_000]).unwrap_err().contains("nested deeper"));
    }

    #[test]
    fn every_limit_is_reached_and_not_passed() {
        let mut reader = RowReader::default();
        reader.push(&vec![b'1'; MAX_ROW_BYTES]).unwrap();
        assert_eq!(reader.push(b"1"), Err(Flood::Row(1)));

        let mut reader = RowReader::default();
        reader.push("1\n".repeat(MAX_ROWS).as_bytes()).unwrap();
        reader.push(b"\n \n").unwrap();
        assert_eq!(reader.push(b"1\n"), Err(Flood::Rows));

        let mut reader = RowReader::default();
        let blank = vec![b'\n'; MAX_ROW_BYTES];
        for _ in 0..MAX_STDOUT_BYTES / MAX_ROW_BYTES {
            reader.push(&blank).unwrap();
        }
        assert_eq!(reader.push(b"\n"), Err(Flood::Bytes));
    }
}
