//! The sink as an SQLite file, shared by the workers of one machine.
//!
//! WAL with full synchronisation: what is acked is on the disk. Writers take the write lock at the start of
//! a transaction (BEGIN IMMEDIATE), so that two processes queue up instead of failing at COMMIT.

mod cursors;
mod insert;
mod markers;
mod store;
mod table;
mod transaction;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shared::id::BatchId;
use shared::outcome::Completed;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, SqlitePool};
use tokio_util::sync::CancellationToken;

pub use self::table::SqliteTable;
use super::group::Groups;
use super::marker::{check_json, read_outcome};
use super::waiting::Write;
use super::{Committed, Grouping, Marker, Sink, SinkError};
use crate::handler::Rows;

/// Connections beside the one that writes groups.
const OTHERS: u32 = 3;
/// How long to wait for another process' write lock. A slice of 50,000 rows holds it for about a second.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// Page cache of the connection that writes groups, in KiB.
const WRITER_CACHE_KIB: i32 = 32 * 1024;

/// An open file.
#[derive(Debug, Clone)]
struct Pools {
    /// One connection, which writes groups. Its page cache lasts for as long as nobody else writes.
    writer: SqlitePool,
    /// These read, and note states.
    others: SqlitePool,
}

/// An SQLite file as sink.
#[derive(Debug)]
pub struct SqliteSink {
    pools: Pools,
    groups: Groups<Arc<Rows>>,
}

impl SqliteSink {
    /// Opens or makes the file and its tables. Several processes may do so at once.
    pub async fn open(
        path: &Path,
        grouping: Grouping,
        hurry: CancellationToken,
    ) -> Result<Self, SinkError> {
        let pools = open(path).await?;
        let writer = transaction::Writer {
            pools: pools.clone(),
            rows: write::ResultsAndSlices::default(),
        };
        let groups = Groups::start(writer, grouping, hurry);
        Ok(Self { pools, groups })
    }

    /// Closes the file; commits that are under way end first.
    pub async fn close(&self) {
        self.pools.writer.close().await;
        self.pools.others.close().await;
    }
}

/// Opens or makes a file with all tables but those of the config.
async fn open(path: &Path) -> Result<Pools, SinkError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| {
            SinkError::Schema(format!(
                "the folder {} cannot be made: {e}",
                folder.display()
            ))
        })?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("temp_store", "memory")
        // No table references another: a slice's rows and its record change together anyway.
        .foreign_keys(false);
    let pool = |size| {
        SqlitePoolOptions::new()
            .max_connections(size)
            // A file does not go away as a server does, and asking costs as much as the question itself.
            .test_before_acquire(false)
            .acquire_timeout(ACQUIRE_TIMEOUT)
    };
    let with_cache = options
        .clone()
        .pragma("cache_size", format!("-{WRITER_CACHE_KIB}"));
    let writer = pool(1).connect_with(with_cache).await.map_err(sink_error)?;
    migrate(&writer).await?;
    let others = pool(OTHERS)
        .connect_with(options)
        .await
        .map_err(sink_error)?;
    Ok(Pools { writer, others })
}

async fn migrate(writer: &SqlitePool) -> Result<(), SinkError> {
    let mut migrator = sqlx::migrate!("migrations/sink/sqlite");
    // The ledger may live in the same database and has migrations of its own.
    migrator.dangerous_set_table_name("_tidegate_sink_migrations");
    // A worker of the next version may have been here first: what it adds, this one leaves alone.
    migrator.set_ignore_missing(true);
    let schema = |e: sqlx::migrate::MigrateError| SinkError::Schema(e.to_string());
    let mut connection = writer.acquire().await.map_err(sink_error)?;
    // The write lock makes processes that start together take turns: sqlx locks nothing on SQLite.
    let mut transaction = connection
        .begin_with("BEGIN IMMEDIATE")
        .await
        .map_err(sink_error)?;
    migrator.run(&mut *transaction).await.map_err(schema)?;
    transaction.commit().await.map_err(sink_error)
}

#[async_trait]
impl Sink for SqliteSink {
    async fn find(&self, batch: BatchId) -> Result<Option<Completed>, SinkError> {
        find_outcome(&self.pools.others, batch).await
    }

    async fn commit(&self, marker: Marker, rows: Arc<Rows>) -> Result<Committed, SinkError> {
        check_json(&rows)?;
        self.groups.commit(Write::new(marker, rows)).await
    }
}

/// The outcome that was stored with a batch's rows.
async fn find_outcome(pool: &SqlitePool, batch: BatchId) -> Result<Option<Completed>, SinkError> {
    let stored: Option<(String,)> =
        sqlx::query_as("SELECT outcome FROM batch_commits WHERE batch = ?")
            .bind(batch.to_string())
            .fetch_optional(pool)
            .await
            .map_err(|e| damaged_or_away(batch, e))?;
    stored
        .map(|(outcome,)| read_outcome(batch, &outcome))
        .transpose()
}

/// A connection whose transaction failed is not used again. SQLite ends some by itself (on a full disk), which sqlx does
/// not notice: it would begin no other.
fn retire_failed<T>(connection: &mut PoolConnection<Sqlite>, result: &Result<T, SinkError>) {
    if result.is_err() {
        connection.close_on_drop();
    }
}

/// What an error of the database means for the batch.
fn sink_error(error: sqlx::Error) -> SinkError {
    const CONSTRAINT: u32 = 19;
    const TOO_BIG: u32 = 18;
    const MISMATCH: u32 = 20;
    let is_refusal = match &error {
        // The low byte of an extended code is the kind of error.
        sqlx::Error::Database(e) => e
            .code()
            .and_then(|code| code.parse::<u32>().ok())
            .is_some_and(|code| [CONSTRAINT, TOO_BIG, MISMATCH].contains(&(code & 0xff))),
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => true,
        _ => false,
    };
    if is_refusal {
        SinkError::Refused(error.into())
    } else {
        SinkError::Unavailable(error.into())
    }
}

/// The same for reading a marker, where a wrong type means that somebody damaged it.
fn damaged_or_away(batch: BatchId, error: sqlx::Error) -> SinkError {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => SinkError::DamagedMarker {
            batch,
            problem: error.to_string(),
        },
        other => sink_error(other),
    }
}
