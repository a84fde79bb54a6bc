//! NDJSON items → batches, without IO of its own: [`lines`] cuts and bounds, [`item`] checks one,
//! [`batches`] groups them.

mod batches;
mod item;
mod lines;

pub(crate) use batches::{Batches, Grouping, NewBatch};

use item::ItemProblem;
use shared::payload::MAX_PAYLOAD_BYTES;

/// Why there is nothing that could be submitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ItemsError {
    /// One line is wrong, so the whole input is.
    #[error("line {line}: {problem}")]
    Line {
        /// Counted from 1, empty lines included.
        line: u64,
        /// What is wrong with it.
        problem: ItemProblem,
    },
    /// More than a payload's worth of bytes without a line feed.
    #[error(
        "line {line} is longer than {MAX_PAYLOAD_BYTES} bytes, the most that a payload may have: NDJSON is one item a line"
    )]
    LongLine {
        /// Counted from 1.
        line: u64,
    },
    /// The input ended in an error.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// Nothing but empty lines.
    #[error("holds no items")]
    Empty,
}

#[cfg(test)]
mod tests;
