//! Where results are stored. A sink takes a batch's rows and its commit marker in one transaction,
//! and the first marker of a batch wins: that is what makes effects happen exactly once.
//!
//! [`sqlite`] and [`postgres`] are siblings with the same tables: `results`, the Search Console's, and those that the
//! config declares ([`table`]). [`files`] are files in a folder, whose markers are in one of the two. One conformance
//! suite (`tests/it/sinks.rs`) runs on all. Batches reach a sink through its [`entrance`] and are written in groups.

pub mod entrance;
pub mod files;
pub mod postgres;
pub mod sqlite;
pub mod table;

mod group;
mod marker;
mod schema;
mod waiting;

use std::sync::Arc;

use async_trait::async_trait;
use shared::id::BatchId;
use shared::name::{Attempt, Instance, Key};
use shared::outcome::Completed;
use shared::tls::Untrusted;

pub use self::waiting::Grouping;
use crate::collect::{AnyJson, RowForm};
use crate::handler::Rows;

/// Where results are stored.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// The outcome that was stored with this batch's rows, if they are in.
    async fn find(&self, batch: BatchId) -> Result<Option<Completed>, SinkError>;

    /// The form in which rows that come as text are collected for this sink.
    fn form(&self) -> Arc<dyn RowForm> {
        Arc::new(AnyJson)
    }

    /// Stores rows and marker in one transaction, unless the batch's marker is there already: then nothing
    /// is written. Either way the answer is the outcome to report. When the answer of a commit was lost,
    /// the marker is read again before anything is said.
    ///
    /// The rows are shared, so that a caller can try again with the same ones.
    ///
    /// The sink adds what it alone knows to the statistics: `rows_written`, `slices_unchanged`.
    async fn commit(&self, marker: Marker, rows: Arc<Rows>) -> Result<Committed, SinkError>;
}

/// Who stores what: the row that says a batch's results are in.
#[derive(Debug, Clone, PartialEq)]
pub struct Marker {
    /// Which batch. The marker is keyed by it alone.
    pub batch: BatchId,
    /// Which attempt produced the rows.
    pub attempt: Attempt,
    /// Which worker.
    pub writer: Instance,
    /// What to report, now and whenever the batch is delivered again.
    pub completed: Completed,
    /// With whom the rows are written: batches of one batch key share groups. Not stored.
    pub batch_key: Option<Key>,
}

/// How a commit ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Committed {
    /// The rows are in, by this call.
    Now(Completed),
    /// The rows were in already; this is what was reported for them.
    Before(Completed),
}

impl Committed {
    /// What a stored marker means to the one who tried to store `marker`.
    fn by(marker: &Marker, stored_attempt: i64, stored_writer: &str, stored: Completed) -> Self {
        let is_own = stored_attempt == i64::from(marker.attempt.number())
            && stored_writer == marker.writer.as_str();
        if is_own {
            Self::Now(stored)
        } else {
            Self::Before(stored)
        }
    }

    /// The outcome to report, whoever stored it.
    #[must_use]
    pub fn into_completed(self) -> Completed {
        match self {
            Self::Now(completed) | Self::Before(completed) => completed,
        }
    }
}

/// Why nothing was stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SinkError {
    /// The database is away, locked or slow: the batch is fine and can be stored later.
    #[error("the sink is not available: {0}")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// The database refuses these rows, and would again.
    #[error("the sink refuses the rows: {0}")]
    Refused(#[source] Arc<sqlx::Error>),
    /// The rows are not what the sink was told to expect.
    #[error("the rows do not fit the sink: {0}")]
    Unfit(String),
    /// The stored marker cannot be read.
    #[error("the commit marker of batch {batch} is damaged: {problem}")]
    DamagedMarker {
        /// Whose marker.
        batch: BatchId,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody answers, and it cannot be known that it is the database, or it does not know us.
    #[error("not trusted: {0}")]
    Untrusted(Untrusted),
    /// The database's tables are not this program's, or not those of the config.
    #[error("the sink's tables cannot be set up: {0}")]
    Schema(String),
}

impl SinkError {
    /// Whether the database itself is fine and only these rows took too long: PostgreSQL's `query_canceled`
    /// (a statement timeout) and `lock_not_available`. Blaming the database would stop a whole fleet for
    /// one batch.
    #[must_use]
    pub fn is_about_the_rows(&self) -> bool {
        let Self::Unavailable(error) = self else {
            return false;
        };
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        matches!(code.as_deref(), Some("57014" | "55P03"))
    }
}
