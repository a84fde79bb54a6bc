//! Stored values become words of the domain, or an error that says which value is damaged. The same for
//! every database: columns have the same names, and numbers are 64 bits wide.

use std::fmt::Debug;

use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};
use sqlx::{ColumnIndex, Decode, Row, Type};

use super::group::Known;
use super::transition::{State, Stored};
use super::{BacklogId, LedgerError};
use crate::run::{BatchCounts, Run, RunState};

/// The number that stands for a state. The partial indexes in the migrations name 0, 1 and 3.
pub(super) fn state_number(state: State) -> i64 {
    match state {
        State::Pending => 0,
        State::Out => 1,
        State::Completed => 2,
        State::Dead => 3,
        State::Cancelled => 4,
    }
}

/// A number as databases store it: what they cannot hold becomes the largest that they can.
pub(super) fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// Reads cells of one table and names the cell when it is damaged.
pub(super) struct Cells<'r, R> {
    table: &'static str,
    row: &'r R,
}

impl<'r, R> Cells<'r, R> {
    pub(super) fn new(table: &'static str, row: &'r R) -> Self {
        Self { table, row }
    }

    pub(super) fn batches(row: &'r R) -> Self {
        Self::new("batches", row)
    }

    pub(super) fn runs(row: &'r R) -> Self {
        Self::new("runs", row)
    }
}

impl<R: Row> Cells<'_, R>
where
    &'static str: ColumnIndex<R>,
    for<'d> i64: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> String: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> Vec<u8>: Decode<'d, R::Database> + Type<R::Database>,
{
    pub(super) fn batch_id(&self, column: &'static str) -> Result<BatchId, LedgerError> {
        let bytes: Vec<u8> = self.cell(column)?;
        BatchId::from_bytes(&bytes).ok_or_else(|| self.damaged(column, &bytes))
    }

    pub(super) fn run_id(&self, column: &'static str) -> Result<RunId, LedgerError> {
        let bytes: Vec<u8> = self.cell(column)?;
        RunId::from_bytes(&bytes).ok_or_else(|| self.damaged(column, &bytes))
    }

    pub(super) fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, LedgerError> {
        self.cell(column)
    }

    pub(super) fn text(&self, column: &'static str) -> Result<String, LedgerError> {
        self.cell(column)
    }

    pub(super) fn optional_text(
        &self,
        column: &'static str,
    ) -> Result<Option<String>, LedgerError> {
        self.cell(column)
    }

    pub(super) fn word<T: std::str::FromStr>(
        &self,
        column: &'static str,
    ) -> Result<T, LedgerError> {
        let word = self.text(column)?;
        word.parse().map_err(|_| self.damaged(column, &word))
    }

    pub(super) fn json(&self, column: &'static str) -> Result<Box<RawValue>, LedgerError> {
        RawValue::from_string(self.text(column)?)
            .map_err(|error| self.damaged(column, &error.to_string()))
    }

    pub(super) fn pipeline(&self, column: &'static str) -> Result<PipelineName, LedgerError> {
        let name = self.text(column)?;
        PipelineName::new(&name).map_err(|_| self.damaged(column, &name))
    }

    pub(super) fn key(&self, column: &'static str) -> Result<Key, LedgerError> {
        let key = self.text(column)?;
        Key::new(&key).map_err(|_| self.damaged(column, &key))
    }

    /// The number of a batch in the order of submission.
    pub(super) fn seq(&self) -> Result<i64, LedgerError> {
        self.cell("seq")
    }

    pub(super) fn count(&self, column: &'static str) -> Result<u64, LedgerError> {
        let number: i64 = self.cell(column)?;
        u64::try_from(number).map_err(|_| self.damaged(column, &number))
    }

    pub(super) fn optional_count(&self, column: &'static str) -> Result<Option<u64>, LedgerError> {
        match self.cell::<Option<i64>>(column)? {
            Some(_) => self.count(column).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn small_count(&self, column: &'static str) -> Result<u32, LedgerError> {
        let number: i64 = self.cell(column)?;
        u32::try_from(number).map_err(|_| self.damaged(column, &number))
    }

    pub(super) fn time(&self, column: &'static str) -> Result<Timestamp, LedgerError> {
        let milliseconds: i64 = self.cell(column)?;
        Timestamp::from_millisecond(milliseconds).map_err(|_| self.damaged(column, &milliseconds))
    }

    pub(super) fn optional_time(
        &self,
        column: &'static str,
    ) -> Result<Option<Timestamp>, LedgerError> {
        match self.cell::<Option<i64>>(column)? {
            Some(_) => self.time(column).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn state(&self, column: &'static str) -> Result<State, LedgerError> {
        let number: i64 = self.cell(column)?;
        [
            State::Pending,
            State::Out,
            State::Completed,
            State::Dead,
            State::Cancelled,
        ]
        .into_iter()
        .find(|state| state_number(*state) == number)
        .ok_or_else(|| self.damaged(column, &number))
    }

    /// Of a batch joined with its run, whose state is called `run_state`.
    pub(super) fn stored(&self) -> Result<Stored, LedgerError> {
        Ok(Stored {
            state: self.state("state")?,
            attempt: Attempt::new(self.small_count("attempt")?),
            failures: self.small_count("failures")?,
            releases: self.small_count("releases")?,
            called_off: self.run_state()? == RunState::Cancelled,
        })
    }

    /// A batch joined with its run, as [`Self::stored`].
    pub(super) fn known(&self) -> Result<Known, LedgerError> {
        Ok(Known {
            seq: self.seq()?,
            backlog: self.backlog()?,
            priority: self.word("priority")?,
            run: self.run_state()?,
            since: self.time("due")?,
            stored: self.stored()?,
        })
    }

    pub(super) fn backlog(&self) -> Result<BacklogId, LedgerError> {
        Ok(BacklogId {
            run: self.run_id("run")?,
            pipeline: self.pipeline("pipeline")?,
            key: self.key("key")?,
        })
    }

    fn run_state(&self) -> Result<RunState, LedgerError> {
        self.word("run_state")
    }

    /// A run without its statistics, which stand in a table of their own.
    pub(super) fn run(&self) -> Result<Run, LedgerError> {
        Ok(Run {
            run: self.run_id("id")?,
            pipeline: self.pipeline("pipeline")?,
            state: self.word("state")?,
            priority: self.word("priority")?,
            batches: BatchCounts {
                accepted: self.count("accepted")?,
                pending: self.count("pending")?,
                out: self.count("out")?,
                completed: self.count("completed")?,
                dead: self.count("dead")?,
                cancelled: self.count("cancelled")?,
            },
            retries: self.count("retries")?,
            rows: self.count("rows")?,
            statistics: shared::outcome::Statistics::new(),
            created_at: self.time("created_at")?,
            finished_at: self.optional_time("finished_at")?,
        })
    }

    /// A value of another kind than its column should hold is damage, and no trouble with the connection.
    fn cell<T>(&self, column: &'static str) -> Result<T, LedgerError>
    where
        for<'d> T: Decode<'d, R::Database> + Type<R::Database>,
    {
        self.row.try_get(column).map_err(|error| match error {
            sqlx::Error::ColumnDecode { source, .. } => self.damaged(column, &source.to_string()),
            error => error.into(),
        })
    }

    fn damaged(&self, column: &'static str, value: &impl Debug) -> LedgerError {
        let row = match self.row.try_get::<Vec<u8>, _>("id") {
            Ok(id) => match BatchId::from_bytes(&id) {
                Some(id) => format!(" in row {id}"),
                None => format!(" in row {id:?}"),
            },
            Err(_) => String::new(),
        };
        LedgerError::Damaged {
            table: self.table,
            column,
            value: format!("{value:?}{row}"),
        }
    }
}
