//! Where text goes: results to stdout, everything else to stderr. A reader that went away (`| head -1`)
//! is no error: it has what it wanted.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;
use shared::exit;

use crate::failure::Failure;

/// Writes one line of result to stdout.
pub(crate) fn result(line: &str) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let message = format!("cannot write the result to stdout: {error}");
            Err(Failure {
                exit: exit::FAILED,
                message,
            })
        }
        _ => Ok(()),
    }
}

/// Writes one JSON document, on one line, to stdout.
pub(crate) fn json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(document).expect("the API's view types serialise");
    result(&text)
}

/// Writes JSON documents to stdout, one a line.
pub(crate) fn ndjson(documents: &[impl Serialize]) -> Result<(), Failure> {
    documents.iter().try_for_each(json)
}

/// Tells the user something on stderr, without control characters: some of it comes from elsewhere.
/// If even that fails, there is nobody left to tell.
pub(crate) fn say(text: &str) {
    let harmless = |c: char| {
        if c.is_control() && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    };
    let text: String = text.chars().map(harmless).collect();
    let _ = writeln!(io::stderr().lock(), "{text}");
}
