//! Stored values become words of the domain, or an error that says which value is damaged.

use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::ledger::LedgerError;
use crate::ledger::transition::{State, Stored};
use crate::run::{BatchCounts, Run};

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

/// Reads cells of one table and names the cell when it is damaged.
pub(super) struct Cells<'r> {
    pub(super) table: &'static str,
    pub(super) row: &'r SqliteRow,
}

impl Cells<'_> {
    pub(super) fn batch_id(&self, column: &'static str) -> Result<BatchId, LedgerError> {
        let bytes: Vec<u8> = self.row.try_get(column)?;
        BatchId::from_bytes(&bytes).ok_or_else(|| self.damaged(column, &bytes))
    }

    pub(super) fn run_id(&self, column: &'static str) -> Result<RunId, LedgerError> {
        let bytes: Vec<u8> = self.row.try_get(column)?;
        RunId::from_bytes(&bytes).ok_or_else(|| self.damaged(column, &bytes))
    }

    pub(super) fn text(&self, column: &'static str) -> Result<String, LedgerError> {
        Ok(self.row.try_get(column)?)
    }

    pub(super) fn word<T: std::str::FromStr>(
        &self,
        column: &'static str,
    ) -> Result<T, LedgerError> {
        let word = self.text(column)?;
        word.parse().map_err(|_| self.damaged(column, &word))
    }

    pub(super) fn pipeline(&self, column: &'static str) -> Result<PipelineName, LedgerError> {
        let name = self.text(column)?;
        PipelineName::new(&name).map_err(|_| self.damaged(column, &name))
    }

    pub(super) fn key(&self, column: &'static str) -> Result<Key, LedgerError> {
        let key = self.text(column)?;
        Key::new(&key).map_err(|_| self.damaged(column, &key))
    }

    pub(super) fn count(&self, column: &'static str) -> Result<u64, LedgerError> {
        let number: i64 = self.row.try_get(column)?;
        u64::try_from(number).map_err(|_| self.damaged(column, &number))
    }

    pub(super) fn small_count(&self, column: &'static str) -> Result<u32, LedgerError> {
        let number: i64 = self.row.try_get(column)?;
        u32::try_from(number).map_err(|_| self.damaged(column, &number))
    }

    pub(super) fn time(&self, column: &'static str) -> Result<Timestamp, LedgerError> {
        let milliseconds: i64 = self.row.try_get(column)?;
        Timestamp::from_millisecond(milliseconds).map_err(|_| self.damaged(column, &milliseconds))
    }

    pub(super) fn optional_time(
        &self,
        column: &'static str,
    ) -> Result<Option<Timestamp>, LedgerError> {
        match self.row.try_get::<Option<i64>, _>(column)? {
            Some(_) => self.time(column).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn stored(&self) -> Result<Stored, LedgerError> {
        Ok(Stored {
            state: self.state("state")?,
            attempt: Attempt::new(self.small_count("attempt")?),
            failures: self.small_count("failures")?,
            releases: self.small_count("releases")?,
            called_off: false,
        })
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

    fn state(&self, column: &'static str) -> Result<State, LedgerError> {
        let number: i64 = self.row.try_get(column)?;
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

    fn damaged(&self, column: &'static str, value: &impl std::fmt::Debug) -> LedgerError {
        LedgerError::Damaged {
            table: self.table,
            column,
            value: format!("{value:?}"),
        }
    }
}
