//! The ledger: the coordinator's durable record of runs and batches.
//!
//! Four traits, one for each stage that uses it, in that stage's words. A backend implements all four and
//! passes the same suite (`conformance`). What is a legal change of state is said once, in [`transition`].

#[cfg(test)]
mod conformance;
pub mod sqlite;
pub mod transition;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};

use crate::run::{DeadBatch, Priority, Run, RunState};
pub use transition::{Judged, Verdict};

/// Everything that a backend can do.
pub trait Ledger: SubmissionLedger + DispatchLedger + SettlementLedger + LedgerViews {}
impl<T: SubmissionLedger + DispatchLedger + SettlementLedger + LedgerViews> Ledger for T {}

/// What submission needs: a run is built up piece by piece, and exists for everybody else only once it is accepted.
#[async_trait]
pub trait SubmissionLedger: Send + Sync + 'static {
    /// Starts a run that nobody sees yet, unless its idempotency key is taken.
    async fn open_run(&self, run: &NewRun) -> Result<Opened, LedgerError>;
    /// Adds batches to a run that was opened and not accepted.
    async fn append(&self, run: RunId, batches: &[NewBatch]) -> Result<(), LedgerError>;
    /// Makes the run and its batches exist, in one transaction.
    async fn accept(&self, run: RunId, digest: &[u8; 32]) -> Result<Run, LedgerError>;
    /// Removes a run that was opened and not accepted; one that was accepted stays.
    async fn abandon(&self, run: RunId) -> Result<(), LedgerError>;
    /// Batches that are pending, over all runs.
    async fn backlog(&self) -> Result<u64, LedgerError>;
}

/// What dispatch needs.
#[async_trait]
pub trait DispatchLedger: Send + Sync + 'static {
    /// What is pending, by run, pipeline and key: of one run, or of all.
    async fn backlogs(&self, run: Option<RunId>) -> Result<Vec<Backlog>, LedgerError>;
    /// What is out.
    async fn outs(&self) -> Result<Vec<OutBatch>, LedgerError>;
    /// The first `limit` batches of a backlog that are due at `now`, longest due first.
    async fn read_pending(
        &self,
        backlog: &BacklogId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Page, LedgerError>;
    /// The payloads of these batches, in their order; `None` for one that is not pending any more, or not
    /// after this attempt: it was settled since it was read.
    async fn payloads(
        &self,
        batches: &[&PendingBatch],
    ) -> Result<Vec<Option<Box<RawValue>>>, LedgerError>;
    /// Records attempts as out. Those whose outcome was settled first stay as they are.
    async fn record_out(
        &self,
        dispatched: &[(BatchId, Attempt)],
        now: Timestamp,
    ) -> Result<(), LedgerError>;
}

/// What settlement needs.
#[async_trait]
pub trait SettlementLedger: Send + Sync + 'static {
    /// Settles outcomes in one transaction: states, counters and follow-ups together. The answers are in
    /// the order of the outcomes.
    async fn settle(
        &self,
        outcomes: &[Judged],
        now: Timestamp,
    ) -> Result<Vec<Settled>, LedgerError>;
}

/// What is asked by people.
#[async_trait]
pub trait LedgerViews: Send + Sync + 'static {
    /// One run.
    async fn run(&self, run: RunId) -> Result<Option<Run>, LedgerError>;
    /// Runs, newest first.
    async fn runs(&self, state: Option<RunState>, limit: u32) -> Result<Vec<Run>, LedgerError>;
    /// Dead batches, newest first.
    async fn dead(&self, filter: &DeadFilter, limit: u32) -> Result<Vec<DeadBatch>, LedgerError>;
}

/// A run that is being submitted.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its id.
    pub id: RunId,
    /// The pipeline of its batches.
    pub pipeline: PipelineName,
    /// Which of a key's runs goes first.
    pub priority: Priority,
    /// The client's name for this submission, so that sending it twice gives one run.
    pub idempotency_key: Option<String>,
    /// When it was submitted.
    pub created_at: Timestamp,
}

/// A batch that is being submitted, or asked for by another one.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Its id.
    pub id: BatchId,
    /// Its pipeline.
    pub pipeline: PipelineName,
    /// Whose work it is.
    pub key: Key,
    /// What to work on.
    pub payload: Box<RawValue>,
    /// When it may be dispatched.
    pub due: Timestamp,
}

/// Whether a run could be opened.
#[derive(Debug, Clone, PartialEq)]
pub enum Opened {
    /// It is new.
    New,
    /// The idempotency key belongs to this run, whose lines had this digest. An empty digest: that
    /// submission is still under way.
    Known {
        /// The run of that key.
        run: Box<Run>,
        /// Of its lines.
        digest: Vec<u8>,
    },
}

/// The pending batches of one run, pipeline and key: what the dispatcher chooses among.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BacklogId {
    /// Whose run.
    pub run: RunId,
    /// Of which kind.
    pub pipeline: PipelineName,
    /// Whose work.
    pub key: Key,
}

/// A backlog that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// Which one.
    pub id: BacklogId,
    /// Of its run.
    pub priority: Priority,
    /// When its first batch may be dispatched.
    pub due: Timestamp,
}

/// The head of a backlog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Batches that are due.
    pub batches: Vec<PendingBatch>,
    /// When the backlog should be read again: at once if there may be more, at the next due time, or never.
    pub more_due: Option<Timestamp>,
}

/// A batch that waits for dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingBatch {
    /// Its id.
    pub id: BatchId,
    /// The last attempt that was made.
    pub attempt: Attempt,
    /// Size of its payload.
    pub bytes: u32,
}

/// A batch that is out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutBatch {
    /// Its id.
    pub id: BatchId,
    /// Its pipeline.
    pub pipeline: PipelineName,
    /// Whose work it is.
    pub key: Key,
}

/// What one outcome did.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// Whose outcome it was.
    pub batch: BatchId,
    /// What it did to the batch.
    pub effect: Effect,
    /// Backlogs that are not empty because of it: the batch's own when it goes out again, its follow-ups'.
    pub backlogs: Vec<Backlog>,
}

/// What an outcome did to its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The batch is completed.
    Completed,
    /// The batch is completed, after it had been called dead or cancelled.
    CompletedLate,
    /// The batch is pending again.
    Again,
    /// The batch is dead.
    Dead,
    /// Nothing: the same attempt was settled before.
    Duplicate,
    /// Nothing: a later attempt was made since.
    Stale,
    /// Nothing: the ledger knows no such batch, or no such attempt.
    Unknown,
}

/// Which dead batches.
#[derive(Debug, Clone, Default)]
pub struct DeadFilter {
    /// Of this run.
    pub run: Option<RunId>,
    /// Of this pipeline.
    pub pipeline: Option<PipelineName>,
}

/// Why the ledger did not do it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database is away, locked, full or slow. Nothing was changed; it may work later.
    #[error("the ledger is not available: {0}")]
    Unavailable(#[from] sqlx::Error),
    /// A stored value makes no sense.
    #[error("the ledger is damaged: {table}.{column} holds {value}")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// Which column.
        column: &'static str,
        /// What is there.
        value: String,
    },
    /// Accepting or filling a run that is not being submitted.
    #[error("run {0} is not being submitted")]
    NotSubmitting(RunId),
    /// The database cannot be set up.
    #[error("the ledger cannot be set up at {address}: {problem}")]
    Setup {
        /// Which database.
        address: String,
        /// Why.
        problem: String,
    },
}
