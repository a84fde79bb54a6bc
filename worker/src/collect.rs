//! How rows are collected that come as text, one by one: each is checked as it comes and kept in the form in which the
//! pipeline's sink stores it, so that it is read once.

use std::fmt::Debug;

use shared::payload::JsonError;

use crate::handler::Rows;
use crate::json_rows::JsonRows;

/// Why a batch fails whose output is not what was agreed, or cannot be stored.
pub(crate) const BAD_OUTPUT: &str = "bad_output";
/// Why a batch fails of which a row is not what the sink's columns are.
pub(crate) const BAD_ROW: &str = "bad_row";

/// The form in which a sink takes rows.
pub trait RowForm: Debug + Send + Sync {
    /// Collects the rows of one batch.
    fn collector(&self) -> Box<dyn Collector>;
}

/// Rows of one batch, so far.
pub trait Collector: Debug + Send {
    /// Adds a row, if it is one that the sink takes.
    fn push(&mut self, row: &str) -> Result<(), BadRow>;

    /// How many there are.
    fn count(&self) -> usize;

    /// There will be no more of them.
    fn finish(self: Box<Self>) -> Rows;
}

/// Why a row is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRow {
    /// It is no JSON that can be stored.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// It is not what the sink's columns are.
    #[error("does not fit the sink: {0}")]
    Unfit(String),
}

impl BadRow {
    /// The reason of a batch that has such a row.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Json(_) => BAD_OUTPUT,
            Self::Unfit(_) => BAD_ROW,
        }
    }
}

/// JSON documents of any shape.
#[derive(Debug)]
pub struct AnyJson;

impl RowForm for AnyJson {
    fn collector(&self) -> Box<dyn Collector> {
        Box::new(JsonRows::default())
    }
}

impl Collector for JsonRows {
    fn push(&mut self, row: &str) -> Result<(), BadRow> {
        Ok(JsonRows::push(self, row)?)
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn finish(self: Box<Self>) -> Rows {
        Rows::Json(self.complete())
    }
}
