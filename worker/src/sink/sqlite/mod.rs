//! The sink as an SQLite file, shared by the workers of one machine.
//!
//! WAL with full synchronisation: what is acked is on the disk. Writers take the write lock at the start of
//! a transaction (BEGIN IMMEDIATE), so that two processes queue up instead of failing at COMMIT.

mod cursors;
mod store;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shared::id::BatchId;
use shared::outcome::Completed;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqlSafeStr, SqlitePool};

use super::group::{Groups, Write};
use super::marker::{check_json, read_outcome};
use super::schema::KnownSets;
use super::{Committed, Marker, Sink, SinkError};
use crate::handler::Rows;

/// Connections: one writes groups, the rest read and note states.
const CONNECTIONS: u32 = 4;
/// How long to wait for another process' write lock. A slice of 50,000 rows holds it for about a second.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// Page cache of a connection, in KiB.
const CACHE_KIB: i32 = 32 * 1024;

/// An SQLite file as sink.
#[derive(Debug)]
pub struct SqliteSink {
    pool: SqlitePool,
    groups: Groups,
}

impl SqliteSink {
    /// Opens or makes the file and its tables. Several processes may do so at once.
    pub async fn open(path: &Path) -> Result<Self, SinkError> {
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
            .pragma("cache_size", format!("-{CACHE_KIB}"))
            .pragma("temp_store", "memory")
            // No table references another: a slice's rows and its record change together anyway.
            .foreign_keys(false);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(sink_error)?;
        migrate(&pool).await?;
        let known_sets = Arc::new(KnownSets::default());
        let groups = Groups::start(write::Writer {
            pool: pool.clone(),
            known_sets,
        });
        Ok(Self { pool, groups })
    }

    /// Closes the file; commits that are under way end first.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

async fn migrate(pool: &SqlitePool) -> Result<(), SinkError> {
    let migration = |version, name: &'static str, sql: &'static str| {
        let sql = sql.into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    };
    let sink = include_str!("../../../migrations/sink/sqlite/0001_sink.sql");
    let cursors = include_str!("../../../migrations/sink/sqlite/0003_cursors.sql");
    let mut migrator = Migrator::with_migrations(vec![
        migration(1, "sink", sink),
        migration(3, "cursors", cursors),
    ]);
    // The ledger may live in the same database and has migrations of its own.
    migrator.dangerous_set_table_name("_tidegate_sink_migrations");
    let schema = |e: sqlx::migrate::MigrateError| SinkError::Schema(e.to_string());
    let mut connection = pool.acquire().await.map_err(sink_error)?;
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
        let stored: Option<(String,)> =
            sqlx::query_as("SELECT outcome FROM batch_commits WHERE batch = ?")
                .bind(batch.to_string())
                .fetch_optional(&self.pool)
                .await
                .map_err(|e| damaged_or_away(batch, e))?;
        stored
            .map(|(outcome,)| read_outcome(batch, &outcome))
            .transpose()
    }

    async fn commit(&self, marker: Marker, rows: Arc<Rows>) -> Result<Committed, SinkError> {
        check_json(&rows)?;
        self.groups.commit(Write { marker, rows }).await
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
