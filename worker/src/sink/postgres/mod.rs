//! The sink as a PostgreSQL database, for a fleet.
//!
//! Slices are committed each in a transaction of its own, several at once, their rows by binary COPY
//! (`slice`); rows for `results` are small and share statements (`write`). Rows for a table with declared columns
//! (`table`) share transactions and go by binary COPY (`binary`).

mod binary;
mod copy;
mod cursors;
mod markers;
mod slice;
mod store;
mod table;
mod write;

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use shared::id::BatchId;
use shared::outcome::Completed;
use shared::tls::Untrusted;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Executor, PgConnection, PgPool};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::binary::CopyRows;
pub use self::table::PostgresTable;
use super::group::Groups;
use super::marker::{check_json, read_outcome};
use super::schema::KnownSets;
use super::waiting::Write;
use super::{Committed, Grouping, Marker, Sink, SinkError};
use crate::handler::Rows;

/// Slices that one worker loads at once. More would only wait for the disk.
const SLICES: u32 = 6;
/// Connections for looking at markers, beside those that write.
const LOOKING: u32 = 2;
/// How long to wait for a connection. Nobody who writes waits for another who does, so a longer wait is a database
/// that is away; sqlx tries it again ever more seldom meanwhile, at last each fifth of this.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a whole commit may take before the database counts as away: ten times what the largest slice
/// takes on a slow disk.
const COMMIT_TIMEOUT: Duration = Duration::from_mins(2);
/// The same limits on the server's side, for sessions whose worker is gone. A live worker is never idle in
/// a transaction; one that is frozen there is cut off before RabbitMQ gives its batches to another (20–30 s),
/// who would wait for its locks.
const SESSION: &str = "SET statement_timeout = '100s'; SET lock_timeout = '60s'; \
                       SET idle_in_transaction_session_timeout = '15s'";

/// A PostgreSQL database as sink.
#[derive(Debug)]
pub struct PostgresSink {
    pool: PgPool,
    known_sets: KnownSets,
    slices: Semaphore,
    groups: Groups<Arc<Rows>>,
}

impl PostgresSink {
    /// Connects and makes the tables. Several workers may do so at once: sqlx takes an advisory lock.
    pub async fn connect(
        url: &SecretString,
        grouping: Grouping,
        hurry: CancellationToken,
    ) -> Result<Self, SinkError> {
        let writers = SLICES + u32::try_from(grouping.concurrency).unwrap_or(u32::MAX);
        let pool = connect(url, writers).await?;
        let groups = Groups::start(write::Writer { pool: pool.clone() }, grouping, hurry);
        Ok(Self {
            pool,
            known_sets: KnownSets::default(),
            slices: Semaphore::new(SLICES as usize),
            groups,
        })
    }

    /// Closes the connections; commits that are under way end first.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Connections for so many that write at once, to a database with all tables but those of the config.
async fn connect(url: &SecretString, writers: u32) -> Result<PgPool, SinkError> {
    // The parser's own words could repeat the password.
    let options: PgConnectOptions = url
        .expose_secret()
        .parse()
        .map_err(|_| SinkError::Schema("the sink's url is no PostgreSQL URL".to_owned()))?;
    let pool = PgPoolOptions::new()
        .max_connections(writers.saturating_add(LOOKING))
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute(sqlx::raw_sql(SESSION)).await.map(drop) })
        })
        .connect_with(options.application_name("tidegate-worker"))
        .await
        .map_err(|error| {
            untrusted(&error).map_or_else(|| sink_error(error), SinkError::Untrusted)
        })?;
    migrate(&pool).await?;
    Ok(pool)
}

/// Whether TLS did not come about. For the start alone: later it may be mended while batches wait.
fn untrusted(error: &sqlx::Error) -> Option<Untrusted> {
    match error {
        sqlx::Error::Tls(problem) => Some(Untrusted::Plain(problem.to_string())),
        error => Untrusted::find_postgres(error),
    }
}

async fn migrate(pool: &PgPool) -> Result<(), SinkError> {
    let mut migrator = sqlx::migrate!("migrations/sink/postgres");
    // The ledger may live in the same database and has migrations of its own.
    migrator.dangerous_set_table_name("_tidegate_sink_migrations");
    // A worker of the next version may have been here first: what it adds, this one leaves alone.
    migrator.set_ignore_missing(true);
    migrator.run(pool).await.map_err(|error| match error {
        MigrateError::Execute(error) => sink_error(error),
        other => SinkError::Schema(other.to_string()),
    })
}

#[async_trait]
impl Sink for PostgresSink {
    async fn find(&self, batch: BatchId) -> Result<Option<Completed>, SinkError> {
        find_outcome(&self.pool, batch).await
    }

    async fn commit(&self, marker: Marker, rows: Arc<Rows>) -> Result<Committed, SinkError> {
        check_json(&rows)?;
        let Rows::Slice(slice) = &*rows else {
            return self.groups.commit(Write::new(marker, rows)).await;
        };
        match self.commit_slice(&marker, slice).await {
            // The connection may have broken at COMMIT: only the marker knows.
            Err(error @ SinkError::Unavailable(_)) => match find(&self.pool, &marker).await {
                Ok(Some(committed)) => Ok(committed),
                Ok(None) | Err(_) => Err(error),
            },
            result => result,
        }
    }
}

/// The outcome that was stored with a batch's rows.
async fn find_outcome(pool: &PgPool, batch: BatchId) -> Result<Option<Completed>, SinkError> {
    let look = sqlx::query_as("SELECT outcome FROM batch_commits WHERE batch = $1::text::uuid")
        .bind(batch.to_string())
        .fetch_optional(pool);
    let stored: Option<(String,)> = bounded(look).await?;
    stored
        .map(|(outcome,)| read_outcome(batch, &outcome))
        .transpose()
}

/// What became of each batch of a group that is in: where the marker was the `first`, what is `completed`.
async fn committed<R>(
    pool: &PgPool,
    group: &[&Write<R>],
    completed: Vec<Completed>,
    first: &HashSet<String>,
) -> Result<Vec<Committed>, SinkError> {
    let mut committed = Vec::with_capacity(group.len());
    for (Write { marker, .. }, completed) in group.iter().zip(completed) {
        committed.push(if first.contains(&marker.batch.to_string()) {
            Committed::Now(completed)
        } else {
            before(pool, marker).await?
        });
    }
    Ok(committed)
}

/// The answer to who found that the marker of a batch was there already.
async fn before(pool: &PgPool, marker: &Marker) -> Result<Committed, SinkError> {
    let missing = || SinkError::Unavailable(sqlx::Error::RowNotFound.into());
    let found = find(pool, marker).await?.ok_or_else(missing)?;
    Ok(Committed::Before(found.into_completed()))
}

/// Until the transaction ends, nobody else makes tables: IF NOT EXISTS alone is no protection against two sessions
/// that create at once.
async fn lock_making_tables(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    /// Any number will do, as long as everybody who makes tables uses it.
    const MAKING_TABLES: i64 = 0x7469_6465_6761_7465;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(MAKING_TABLES)
        .execute(connection)
        .await
        .map(drop)
}

/// The stored marker of a batch, as the answer to `marker`.
async fn find(pool: &PgPool, marker: &Marker) -> Result<Option<Committed>, SinkError> {
    let look = sqlx::query_as(
        "SELECT attempt, writer, outcome FROM batch_commits WHERE batch = $1::text::uuid",
    )
    .bind(marker.batch.to_string())
    .fetch_optional(pool);
    let stored: Option<(i64, String, String)> = bounded(look).await?;
    let Some((attempt, writer, outcome)) = stored else {
        return Ok(None);
    };
    let completed = read_outcome(marker.batch, &outcome)?;
    Ok(Some(Committed::by(marker, attempt, &writer, completed)))
}

/// An answer that does not come is a database that is away.
async fn bounded<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, SinkError> {
    let late =
        |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer");
    let result = tokio::time::timeout(COMMIT_TIMEOUT, work).await;
    result
        .map_err(|elapsed| sink_error(late(elapsed).into()))?
        .map_err(sink_error)
}

/// What an error of the database means for the batch. Only what lies in the rows themselves is a refusal:
/// data (22), constraints (23), limits of the program (54). A full disk, a lock, a failover, a missing
/// privilege or table would fail any batch.
fn sink_error(error: sqlx::Error) -> SinkError {
    let is_refusal = match &error {
        sqlx::Error::Database(e) => e.code().is_some_and(|code| {
            ["22", "23", "54"]
                .iter()
                .any(|class| code.starts_with(class))
        }),
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => true,
        _ => false,
    };
    if is_refusal {
        SinkError::Refused(error.into())
    } else {
        SinkError::Unavailable(error.into())
    }
}
