//! What a pipeline does with one batch: the trait that every kind of work implements.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::ask::{About, Said, Want};
use shared::batch::Batch;
use shared::name::{Key, LimitName};
use shared::outcome::{FollowUp, Statistics};
use shared::presence::Progress;
use tokio_util::sync::CancellationToken;

use crate::cursor::{Cursor, CursorError};
use crate::holding::Reporter;
use crate::jobs::search_console::slice_rows::Slice;
use crate::json_rows::JsonRows;
use crate::permits::{NoPermit, Permit, Permits};
use crate::sink::postgres::CopyRows;

/// A kind of work: turns one payload into rows, follow-ups and statistics.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The payload's shape. One that does not fit it fails the batch, with the reason `bad_payload`.
    type Input: DeserializeOwned + Send;

    /// Does the work. It may be called more than once for the same batch (a worker died, an attempt was
    /// retried); what it *returns* takes effect once, so it should have no other effects, or harmless ones.
    async fn handle(&self, input: Self::Input, ctx: &BatchContext) -> Result<Output, HandlerError>;

    /// Ends what is kept from batch to batch, such as connections and processes. Called once, when the worker
    /// takes no more batches; it has what is left of the drain timeout.
    async fn close(&self) {}
}

/// What a handler knows about the batch it works on.
#[derive(Debug, Clone)]
pub struct BatchContext {
    /// The batch as delivered: ids, key, attempt, and the payload before it was parsed.
    pub batch: Arc<Batch>,
    /// When the pipeline's deadline ends this attempt.
    pub deadline: Instant,
    /// Cancelled when the attempt's result is no longer wanted: deadline, second signal.
    pub cancelled: CancellationToken,
    /// Gives leave for calls to limited services.
    pub permits: Arc<dyn Permits>,
    /// How far an earlier attempt came.
    pub saved: Cursor,
    /// Tells how far this one has come.
    pub reporter: Reporter,
}

impl BatchContext {
    /// Waits until `n` calls under this limit may start, for the batch's own key. An error is what the handler
    /// should return: the limit wants the batch to wait for longer than a slot should.
    pub async fn permit(&self, limit: &LimitName, n: u32) -> Result<Permit, HandlerError> {
        let key = self.batch.key.clone();
        let limit = limit.clone();
        self.permit_all(vec![Want { limit, key, n }]).await
    }

    /// The same for a call that falls under several limits, or another key's. All of them give leave or none.
    pub async fn permit_all(&self, wants: Vec<Want>) -> Result<Permit, HandlerError> {
        let deadline = self.deadline.into();
        tokio::select! {
            permit = self.permits.permit(&self.batch.pipeline, wants, deadline) => Ok(permit?),
            () = self.cancelled.cancelled() => Err(HandlerError::retry("the attempt was cancelled")),
        }
    }

    /// Says that the service refused a call as too fast, and for how long it wants no more of them. The limit
    /// cools down; an adaptive one gets slower.
    pub fn too_fast(&self, limit: &LimitName, permit: Permit, retry_after: Option<Duration>) {
        let said = Said::TooFast {
            retry_after,
            persistent: None,
        };
        self.report(limit, permit, said);
    }

    /// Says that the service took a call: what lets an adaptive limit get faster.
    pub fn accepted(&self, limit: &LimitName, permit: Permit) {
        self.report(limit, permit, Said::Accepted);
    }

    /// Says to whoever looks at the batch that so many units (rows, pages, bytes) are done, of a total if that is
    /// known. Costs next to nothing; it is shown within [2 s](shared::presence::INTERVAL), and forgotten with the
    /// attempt. What the next attempt should know belongs into a [cursor](Self::save_cursor).
    pub fn progress(&self, done: u64, total: Option<u64>) {
        self.reporter.report(Progress { done, total });
    }

    /// How far an attempt came that could not finish, if one has [said so](Self::save_cursor). A cursor that does
    /// not fit the type fails the batch, with the reason `bad_cursor`.
    pub fn cursor<T: DeserializeOwned>(&self) -> Result<Option<T>, HandlerError> {
        self.saved.read()
    }

    /// Says how far this attempt has come, at most [64 KiB of JSON](crate::cursor::MAX_CURSOR_BYTES). If it cannot
    /// finish (its worker dies or drains, it has to be retried), the next one starts with this cursor. What this
    /// one has found until now is not kept, only what it returns in the end: put that into the cursor, or into a
    /// place of your own.
    ///
    /// Takes a write of the sink's database: once in seconds, not once a row.
    pub async fn save_cursor(
        &self,
        cursor: &(impl Serialize + ?Sized + Sync),
    ) -> Result<(), CursorError> {
        self.saved
            .save(self.batch.id, self.batch.attempt, cursor)
            .await
    }

    fn report(&self, limit: &LimitName, permit: Permit, said: Said) {
        let about = About {
            limit: limit.clone(),
            key: self.batch.key.clone(),
        };
        self.permits.report(permit, vec![about], said);
    }
}

/// What one batch produced.
#[derive(Debug, Default)]
pub struct Output {
    /// What goes into the sink.
    pub rows: Rows,
    /// Which batches' rows may be written together with these: those of the same batch key. Files in a folder have a
    /// folder for each. Default: those without one.
    pub batch_key: Option<Key>,
    /// Batches to run next, in the same run.
    pub follow_ups: Vec<FollowUp>,
    /// Named counts, summed over the run.
    pub statistics: Statistics,
}

/// Rows on their way into a sink.
#[derive(Debug, Default)]
pub enum Rows {
    /// Nothing to store but the commit marker.
    #[default]
    None,
    /// JSON documents, one a row.
    Json(JsonRows),
    /// The same as a PostgreSQL table takes them.
    Copy(Arc<CopyRows>),
    /// One slice of Search Analytics, which replaces what the sink has of it.
    Slice(Box<Slice>),
}

/// Why a batch was not done, and so what happens next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// It may work another time. Burns an attempt.
    #[error("{error}")]
    Retry {
        /// What went wrong, for a person.
        error: String,
        /// How long to wait; `None` leaves it to the pipeline's backoff.
        after: Option<Duration>,
    },
    /// A limited service said "not now". Burns no attempt.
    #[error("throttled: {reason}")]
    Throttled {
        /// Which limit, for a person.
        reason: String,
        /// How long to hold the batch back.
        after: Duration,
    },
    /// No coordinator was there to give leave for a call. The batch is given back to the broker, and the
    /// worker consumes again when a coordinator answers. Burns no attempt.
    #[error("no coordinator gives leave for calls")]
    CoordinatorAway,
    /// It would fail again: the batch is dead.
    #[error("{error}")]
    Fail {
        /// A closed word for counting and filtering: `bad_payload`, `permission_lost`, …
        reason: &'static str,
        /// What went wrong, for a person.
        error: String,
    },
}

impl HandlerError {
    /// It may work another time; the pipeline's backoff says when.
    pub fn retry(error: impl Into<String>) -> Self {
        Self::Retry {
            error: error.into(),
            after: None,
        }
    }

    /// A service said "not now": hold the batch back for so long.
    pub fn throttled(reason: impl Into<String>, after: Duration) -> Self {
        Self::Throttled {
            reason: reason.into(),
            after,
        }
    }

    /// It would fail again.
    pub fn fail(reason: &'static str, error: impl Into<String>) -> Self {
        Self::Fail {
            reason,
            error: error.into(),
        }
    }
}

/// What `?` makes of an error that nobody looked at: it may work another time.
impl From<anyhow::Error> for HandlerError {
    fn from(error: anyhow::Error) -> Self {
        Self::retry(format!("{error:#}"))
    }
}

impl From<NoPermit> for HandlerError {
    fn from(refusal: NoPermit) -> Self {
        match refusal {
            NoPermit::Parked { reason, after, .. } => Self::Throttled { reason, after },
            NoPermit::Unknown(limit) => Self::fail(
                "unknown_limit",
                format!("the coordinator knows no limit {limit}: configure [limits.\"{limit}\"]"),
            ),
            NoPermit::CoordinatorAway => Self::CoordinatorAway,
        }
    }
}
