//! Whole records of the ledger, from rows of whatever database: the backends agree on the names of columns.

use jiff::Timestamp;
use shared::outcome::Statistics;
use sqlx::{ColumnIndex, Decode, Row, Type};
use uuid::Uuid;

use super::group::{COMPLETED, Known};
use super::row::Cells;
use super::transition::{State, Stored};
use super::{Backlog, BacklogId, LedgerError, OutBatch, OutSince, Page, PendingBatch, Suspect};
use crate::run::{
    AttemptRecord, BatchCounts, BatchDetail, BatchSummary, DeadBatch, PipelineCounts, Run, RunState,
};

impl<R: Row> Cells<'_, R>
where
    &'static str: ColumnIndex<R>,
    for<'d> i64: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> String: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> Vec<u8>: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> Uuid: Decode<'d, R::Database> + Type<R::Database>,
{
    /// Of a batch joined with its run, whose state is called `run_state`.
    pub(super) fn stored(&self) -> Result<Stored, LedgerError> {
        Ok(Stored {
            state: self.state("state")?,
            attempt: self.attempt("attempt")?,
            failures: self.small_count("failures")?,
            releases: self.small_count("releases")?,
            called_off: self.run_state()? == RunState::Cancelled,
        })
    }

    /// A batch joined with its run, as [`Self::stored`].
    pub(super) fn known<N>(&self, row: N) -> Result<Known<N>, LedgerError> {
        Ok(Known {
            row,
            backlog: self.backlog()?,
            priority: self.of("runs").word("priority")?,
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
        self.of("runs").word("run_state")
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
            statistics: Statistics::new(),
            created_at: self.time("created_at")?,
            finished_at: self.optional_time("finished_at")?,
        })
    }

    /// The first pending batch of a backlog, with its run's priority.
    pub(super) fn head(&self) -> Result<Backlog, LedgerError> {
        Ok(Backlog {
            id: self.backlog()?,
            priority: self.of("runs").word("priority")?,
            due: self.time("due")?,
        })
    }

    pub(super) fn pending_batch(&self) -> Result<PendingBatch, LedgerError> {
        Ok(PendingBatch {
            id: self.batch_id("id")?,
            attempt: self.attempt("attempt")?,
            bytes: self.small_count("bytes")?,
        })
    }

    pub(super) fn out_batch(&self) -> Result<OutBatch, LedgerError> {
        Ok(OutBatch {
            id: self.batch_id("id")?,
            pipeline: self.pipeline("pipeline")?,
            key: self.key("key")?,
        })
    }

    pub(super) fn out_since(&self) -> Result<OutSince, LedgerError> {
        Ok(OutSince {
            id: self.batch_id("id")?,
            pipeline: self.pipeline("pipeline")?,
            key: self.key("key")?,
            attempt: self.attempt("attempt")?,
            since: self.time("due")?,
        })
    }

    /// As [`Self::stored`].
    pub(super) fn suspect(&self) -> Result<Suspect, LedgerError> {
        Ok(Suspect {
            stored: self.stored()?,
            deaths: self.small_count("deaths")?,
            alone_on: self.optional_instance("alone_on")?,
        })
    }

    pub(super) fn dead_batch(&self) -> Result<DeadBatch, LedgerError> {
        Ok(DeadBatch {
            batch: self.batch_id("id")?,
            run: self.run_id("run")?,
            pipeline: self.pipeline("pipeline")?,
            key: self.key("key")?,
            reason: self.optional_text("reason")?.unwrap_or_default(),
            error: self.optional_text("error")?.unwrap_or_default(),
            attempts: self.small_count("attempt")?,
            died_at: self.time("due")?,
        })
    }

    pub(super) fn summary(&self) -> Result<BatchSummary, LedgerError> {
        Ok(BatchSummary {
            batch: self.batch_id("id")?,
            pipeline: self.pipeline("pipeline")?,
            key: self.key("key")?,
            state: self.state("state")?,
            attempts: self.small_count("attempt")?,
            since: self.time("due")?,
        })
    }

    /// A batch joined with its payload.
    pub(super) fn detail(&self, history: Vec<AttemptRecord>) -> Result<BatchDetail, LedgerError> {
        Ok(BatchDetail {
            batch: self.batch_id("id")?,
            run: self.run_id("run")?,
            pipeline: self.pipeline("pipeline")?,
            key: self.key("key")?,
            state: self.state("state")?,
            attempts: self.small_count("attempt")?,
            failures: self.small_count("failures")?,
            since: self.time("due")?,
            reason: self.optional_text("reason")?,
            error: self.optional_text("error")?,
            payload: self.of("payloads").json("body")?,
            history,
            in_hand: None,
        })
    }

    /// The history of this batch: what the table of attempts has of it, newest first, and the attempt that
    /// completed the batch in time, which stands in the batch's own row.
    pub(super) fn history(&self, attempts: &[R]) -> Result<Vec<AttemptRecord>, LedgerError> {
        let mut history = attempts
            .iter()
            .rev()
            .map(|row| Cells::new("attempts", row).attempt_record())
            .collect::<Result<Vec<_>, _>>()?;
        let is_told = history.iter().any(|record| record.verdict == COMPLETED);
        if self.state("state")? == State::Completed && !is_told {
            history.push(AttemptRecord {
                attempt: self.small_count("attempt")?,
                worker: self.optional_instance("worker")?,
                out_at: self.optional_time("out_at")?,
                settled_at: self.time("due")?,
                took_ms: self.optional_count("took_ms")?,
                verdict: COMPLETED.to_owned(),
                error: None,
            });
        }
        Ok(history)
    }

    fn attempt_record(&self) -> Result<AttemptRecord, LedgerError> {
        Ok(AttemptRecord {
            attempt: self.small_count("attempt")?,
            worker: self.optional_instance("worker")?,
            out_at: self.optional_time("out_at")?,
            settled_at: self.time("settled_at")?,
            took_ms: self.optional_count("took_ms")?,
            verdict: self.text("verdict")?,
            error: self.optional_text("error")?,
        })
    }

    pub(super) fn pipeline_counts(&self) -> Result<PipelineCounts, LedgerError> {
        Ok(PipelineCounts {
            pipeline: self.pipeline("name")?,
            pending: self.count("pending")?,
            out: self.count("out")?,
        })
    }
}

/// The head of a backlog, of rows in the order of their due time: one more than `limit` was asked for, and
/// says, if it exists, when to read again.
pub(super) fn page<R: Row>(rows: &[R], now: Timestamp, limit: u32) -> Result<Page, LedgerError>
where
    &'static str: ColumnIndex<R>,
    for<'d> i64: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> String: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> Vec<u8>: Decode<'d, R::Database> + Type<R::Database>,
    for<'d> Uuid: Decode<'d, R::Database> + Type<R::Database>,
{
    let mut page = Page {
        batches: Vec::with_capacity(rows.len()),
        more_due: None,
    };
    for cells in rows.iter().map(Cells::batches) {
        let due = cells.time("due")?;
        if due > now || page.batches.len() == limit as usize {
            page.more_due = Some(due);
            break;
        }
        page.batches.push(cells.pending_batch()?);
    }
    Ok(page)
}
