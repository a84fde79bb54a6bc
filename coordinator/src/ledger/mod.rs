//! The ledger: the coordinator's durable record of runs and batches.
//!
//! One trait for each stage that uses it, in that stage's words. A backend implements all of them and
//! passes the same suite (`conformance`). What is a legal change of state is said once, in [`transition`].

#[cfg(test)]
mod conformance;
mod group;
pub mod postgres;
mod record;
mod row;
pub mod sqlite;
mod tally;
pub mod transition;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, Key, PipelineName};
use shared::tls::Untrusted;

use crate::run::{
    BatchDetail, BatchState, BatchSummary, DeadBatch, PipelineCounts, Priority, Run, RunState,
};
pub use transition::{Judged, Stored, Verdict};

/// Everything that a backend can do. One process owns a ledger at a time.
#[async_trait]
pub trait Ledger:
    SubmissionLedger
    + DispatchLedger
    + SettlementLedger
    + OperationsLedger
    + ReconciliationLedger
    + MemoryLedger
    + LedgerViews
    + OperatorViews
    + Ownership
{
    /// Waits until another process has taken the ledger over: every write fails from then on, so this one
    /// had better end.
    async fn lost(&self) -> LedgerError;
    /// Lets a successor have the ledger at once. Nothing may be written after.
    async fn release(&self);
}

/// Whose the ledger is.
pub trait Ownership: Send + Sync + 'static {
    /// Whether it surely is this process's. Otherwise another one may have taken it over, and whatever needs no
    /// write to the ledger had better be left to that.
    fn is_sure(&self) -> bool;
}

/// What submission needs: a run is built up piece by piece, and exists for everybody else only once it is accepted.
#[async_trait]
pub trait SubmissionLedger: Send + Sync + 'static {
    /// Opens a run, adds its batches and accepts it, all in one transaction: for a run that is small enough.
    async fn take(
        &self,
        run: &NewRun,
        batches: &[NewBatch],
        digest: &[u8; 32],
    ) -> Result<Opened<Run>, LedgerError>;
    /// Starts a run that nobody sees yet, unless its idempotency key is taken.
    async fn open_run(&self, run: &NewRun) -> Result<Opened, LedgerError>;
    /// Adds batches, all of the run's pipeline, to a run that was opened and not accepted. Those that are in
    /// already (the answer was lost) are not added again.
    async fn append(&self, run: RunId, batches: &[NewBatch]) -> Result<(), LedgerError>;
    /// Makes the run and its batches exist, in one transaction. Doing so again, with the same digest, only
    /// gives the run: the answer may have been lost.
    async fn accept(&self, run: RunId, digest: &[u8; 32]) -> Result<Run, LedgerError>;
    /// Removes a run that was opened and not accepted; one that was accepted stays.
    async fn abandon(&self, run: RunId) -> Result<(), LedgerError>;
    /// Batches that are pending, over all accepted runs.
    async fn backlog(&self) -> Result<u64, LedgerError>;
}

/// What dispatch needs.
#[async_trait]
pub trait DispatchLedger: Send + Sync + 'static {
    /// What is pending, by run, pipeline and key: of one run, or of all. Here and below, only what belongs to
    /// a running run is there to be dispatched. Costs as much as there are keys, however many batches wait.
    async fn backlogs(&self, run: Option<RunId>) -> Result<Vec<Backlog>, LedgerError>;
    /// Waits until nobody knows whether a write happened, because its answer was lost: whoever would have told
    /// what came of it told nothing.
    async fn doubted(&self);
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
    /// How many batches of running runs are pending in this pipeline, counted up to `enough`.
    async fn waiting(&self, pipeline: &PipelineName, enough: u64) -> Result<u64, LedgerError>;
}

/// What settlement, and whoever else knows what became of an attempt, needs.
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

/// What operators do to runs and dead batches.
#[async_trait]
pub trait OperationsLedger: Send + Sync + 'static {
    /// Cancels a run that is not finished: nothing more of it goes out, and its pending batches are
    /// cancelled by [`Self::cancel_pending`]. The run as it is now; `None` when there is none.
    async fn cancel(&self, run: RunId, now: Timestamp) -> Result<Option<Run>, LedgerError>;
    /// Cancels up to `limit` pending batches of a cancelled run, and says how many: 0 means that it is done.
    async fn cancel_pending(
        &self,
        run: RunId,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, LedgerError>;
    /// Cancelled runs that still have batches pending or out.
    async fn cancelling(&self) -> Result<Vec<RunId>, LedgerError>;
    /// Pauses a running run, or lets a paused one go on; any other stays as it is.
    async fn pause(&self, run: RunId, paused: bool) -> Result<Option<Run>, LedgerError>;
    /// Gives a run that is not finished another priority.
    async fn prioritize(&self, run: RunId, priority: Priority) -> Result<Option<Run>, LedgerError>;
    /// Pipelines from which nothing goes out.
    async fn paused_pipelines(&self) -> Result<BTreeSet<PipelineName>, LedgerError>;
    /// Pauses a pipeline, or lets it go on.
    async fn pause_pipeline(
        &self,
        pipeline: &PipelineName,
        paused: bool,
    ) -> Result<(), LedgerError>;
    /// Makes up to `limit` dead batches pending, oldest first, one every `spacing` from `from` on. Those of
    /// cancelled runs stay.
    async fn redrive(
        &self,
        filter: &DeadFilter,
        limit: u32,
        from: Timestamp,
        spacing: Duration,
    ) -> Result<Redriven, LedgerError>;
    /// Cancels up to `limit` dead batches, and says how many.
    async fn discard(
        &self,
        filter: &DeadFilter,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, LedgerError>;
}

/// What finds lost batches and culprits.
#[async_trait]
pub trait ReconciliationLedger: Send + Sync + 'static {
    /// What has been out since before then, oldest first.
    async fn out_since(&self, before: Timestamp, limit: u32) -> Result<Vec<OutSince>, LedgerError>;
    /// What is known of a batch that was delivered again; `None` when the ledger has no such batch.
    async fn suspect(&self, batch: BatchId) -> Result<Option<Suspect>, LedgerError>;
    /// Remembers how often a batch's worker died, and who runs this attempt of it alone now: unless that is over.
    async fn suspected(
        &self,
        batch: BatchId,
        attempt: Attempt,
        deaths: u32,
        alone_on: Option<&Instance>,
    ) -> Result<(), LedgerError>;
}

/// Small things that must survive a restart of the coordinator.
#[async_trait]
pub trait MemoryLedger: Send + Sync + 'static {
    /// What was remembered of this kind, by name.
    async fn remembered(&self, kind: Memory) -> Result<BTreeMap<String, String>, LedgerError>;
    /// Remembers these, by name, in one transaction.
    async fn remember(
        &self,
        kind: Memory,
        entries: &BTreeMap<String, String>,
    ) -> Result<(), LedgerError>;
    /// Finished runs whose webhook was not called yet, and when it is due.
    async fn webhooks_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Webhook>, LedgerError>;
    /// When the next webhook is due.
    async fn next_webhook(&self) -> Result<Option<Timestamp>, LedgerError>;
    /// What became of a call: delivered or given up (`None`), or due again. It changes nothing if the run has run
    /// again: that call told of another end.
    async fn webhook_called(
        &self,
        webhook: &Webhook,
        failures: u32,
        again: Option<Timestamp>,
    ) -> Result<(), LedgerError>;
}

/// What kind of thing is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Memory {
    /// State of a limit, by its name.
    Limit,
    /// Time up to which a schedule was looked after, by its name.
    Schedule,
}

impl Memory {
    /// The word that stands for it in the ledger.
    fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Schedule => "schedule",
        }
    }
}

/// What is asked by people.
#[async_trait]
pub trait LedgerViews: Send + Sync + 'static {
    /// One run.
    async fn run(&self, run: RunId) -> Result<Option<Run>, LedgerError>;
    /// Runs, newest first: those in this state, older than the given one.
    async fn runs(
        &self,
        state: Option<RunState>,
        before: Option<RunId>,
        limit: u32,
    ) -> Result<Vec<Run>, LedgerError>;
    /// Dead batches, newest first.
    async fn dead(&self, filter: &DeadFilter, limit: u32) -> Result<Vec<DeadBatch>, LedgerError>;
}

/// What operators look at besides.
#[async_trait]
pub trait OperatorViews: Send + Sync + 'static {
    /// How many dead batches there are.
    async fn count_dead(&self, filter: &DeadFilter) -> Result<u64, LedgerError>;
    /// One batch with its payload and history.
    async fn batch(&self, batch: BatchId) -> Result<Option<BatchDetail>, LedgerError>;
    /// Batches of a run that are in this state, in the order of submission, after the given one.
    async fn batches(
        &self,
        run: RunId,
        state: Option<BatchState>,
        after: Option<BatchId>,
        limit: u32,
    ) -> Result<Vec<BatchSummary>, LedgerError>;
    /// Where the batches of unfinished runs stand, by pipeline; those without any are left out.
    async fn pipelines(&self) -> Result<Vec<PipelineCounts>, LedgerError>;
    /// When the pending batch of a running run that has been due longest became due; `None` when nothing is.
    async fn oldest_due(&self, now: Timestamp) -> Result<Option<Timestamp>, LedgerError>;
}

/// What a redrive did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redriven {
    /// How many batches are pending again.
    pub batches: u64,
    /// The backlogs that are not empty because of it.
    pub backlogs: Vec<Backlog>,
}

/// A batch that has been out for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutSince {
    /// Its id.
    pub id: BatchId,
    /// Its pipeline.
    pub pipeline: PipelineName,
    /// Whose work it is.
    pub key: Key,
    /// Which attempt is out.
    pub attempt: Attempt,
    /// When that was recorded.
    pub since: Timestamp,
}

/// What is known of a batch that was delivered again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// Where it stands.
    pub stored: Stored,
    /// How often its worker died.
    pub deaths: u32,
    /// Who was told to run it alone, last.
    pub alone_on: Option<Instance>,
}

/// A webhook that is due.
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// The finished run.
    pub run: Run,
    /// Whom to tell.
    pub url: String,
    /// How often that failed.
    pub failures: u32,
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
    /// Whom to tell when it has finished.
    pub webhook: Option<String>,
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
pub enum Opened<T = ()> {
    /// It is new.
    New(T),
    /// The idempotency key belongs to another one.
    Known(KnownRun),
}

/// The run that an idempotency key belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownRun {
    /// The run.
    pub run: Box<Run>,
    /// Of its lines. Empty: that submission is still under way.
    pub digest: Vec<u8>,
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
    /// Of which attempt.
    pub attempt: Attempt,
    /// What it did to the batch.
    pub effect: Effect,
    /// Backlogs that are not empty because of it: the batch's own when it goes out again (or, stale, went again
    /// before), its follow-ups'.
    pub backlogs: Vec<Backlog>,
}

/// What an outcome did to its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The batch is completed.
    Completed,
    /// The batch is completed, after it had been called dead or cancelled, or its attempt failed or lost.
    CompletedLate,
    /// The batch is pending again.
    Again,
    /// The batch is dead.
    Dead,
    /// The batch is cancelled: it would have gone out again, but its run was called off.
    Cancelled,
    /// Nothing: the same attempt was settled before.
    Duplicate,
    /// Nothing: its attempt ended otherwise before, and the batch goes on.
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
    /// Only this one.
    pub batch: Option<BatchId>,
    /// Of this key.
    pub key: Option<Key>,
    /// With this reason.
    pub reason: Option<String>,
    /// Dead since before then.
    pub before: Option<Timestamp>,
}

/// Why the ledger did not do it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database is away, locked, full or slow; it may work later. A write may have happened all the same.
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
    /// Another process owns this ledger, or has taken it over.
    #[error(
        "the ledger at {address} belongs to {owner}: stop it first, or give this coordinator a ledger of its own"
    )]
    Owned {
        /// Which database.
        address: String,
        /// Who has it.
        owner: String,
    },
    /// The tables were made by a newer version.
    #[error(
        "the ledger at {address} is at version {found}, this program knows {known}: run the newer program"
    )]
    Newer {
        /// Which database.
        address: String,
        /// Its version.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// Accepting or filling a run that is not being submitted.
    #[error("run {0} is not being submitted")]
    NotSubmitting(RunId),
    /// Somebody answers, and it cannot be known that it is the database, or it does not know us.
    #[error("the ledger's database {address} is not trusted: {problem}")]
    Untrusted {
        /// Which database.
        address: String,
        /// Why, and what to do.
        problem: Untrusted,
    },
    /// The database cannot be set up.
    #[error("the ledger cannot be set up at {address}: {problem}")]
    Setup {
        /// Which database.
        address: String,
        /// Why.
        problem: String,
    },
}

/// Compares the newest migration that a database has seen with the newest that this program has.
fn check_version(
    migrator: &sqlx::migrate::Migrator,
    found: Option<i64>,
    address: &str,
) -> Result<(), LedgerError> {
    let known = migrator.iter().map(|migration| migration.version).max();
    match (found, known) {
        (Some(found), Some(known)) if found > known => Err(LedgerError::Newer {
            address: address.to_owned(),
            found,
            known,
        }),
        _ => Ok(()),
    }
}
