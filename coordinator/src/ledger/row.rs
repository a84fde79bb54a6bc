//! Stored values become words of the domain, or an error that says which value is damaged. The same for
//! every database: columns have the same names, and numbers are 64 bits wide. Whole records are in
//! [`super::record`].

use std::fmt::Debug;

use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, Key, PipelineName};
use sqlx::{ColumnIndex, Decode, Row, Type};
use uuid::Uuid;

use super::LedgerError;
use super::transition::State;

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

    /// The same row, as far as it comes from another table.
    pub(super) fn of(&self, table: &'static str) -> Self {
        Self::new(table, self.row)
    }
}

impl<R: Row> Cells<'_, R>
where
    &'static str: ColumnIndex<R>,
    for<'d> i64: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> String: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> Vec<u8>: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> Uuid: Decode<'d, R::Database> + Type<R::Database>,
{
    pub(super) fn batch_id(&self, column: &'static str) -> Result<BatchId, LedgerError> {
        let id: Uuid = self.cell(column)?;
        BatchId::from_bytes(id.as_bytes()).ok_or_else(|| self.damaged(column, &id))
    }

    pub(super) fn run_id(&self, column: &'static str) -> Result<RunId, LedgerError> {
        let id: Uuid = self.cell(column)?;
        RunId::from_bytes(id.as_bytes()).ok_or_else(|| self.damaged(column, &id))
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

    /// The number of a batch in the order of submission, where there is one.
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

    pub(super) fn attempt(&self, column: &'static str) -> Result<Attempt, LedgerError> {
        self.small_count(column).map(Attempt::new)
    }

    pub(super) fn optional_instance(
        &self,
        column: &'static str,
    ) -> Result<Option<Instance>, LedgerError> {
        Ok(self.optional_text(column)?.map(Instance::from))
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
        let row = match self.row.try_get::<Uuid, _>("id") {
            Ok(id) => format!(" in row {id}"),
            Err(_) => String::new(),
        };
        LedgerError::Damaged {
            table: self.table,
            column,
            value: format!("{value:?}{row}"),
        }
    }
}
