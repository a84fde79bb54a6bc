//! The ledger in one SQLite file.
//!
//! One connection writes, a few read. Every write is one `BEGIN IMMEDIATE` transaction over a whole group:
//! ids travel as one JSON array, so a group of a thousand costs one statement, not a thousand.

mod dead;
mod dispatch;
mod lock;
mod memory;
mod operations;
mod reconciliation;
mod settlement;
mod submission;
mod views;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shared::id::BatchId;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

use self::lock::FileLock;
use super::{Ledger, LedgerError, Ownership, check_version};

/// How long a write waits while another process holds the file's lock (a backup, a shell).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections for the API's questions and the dispatcher's pages.
const READERS: u32 = 4;
/// Pages of WAL after which SQLite copies it into the file: a few seconds of full load, so that a page
/// that changes twice is copied once.
const CHECKPOINT_PAGES: &str = "8000";
/// KiB of pages that the writer keeps: what is out and what goes out next stays in memory. Readers start
/// over after each commit and need little.
const WRITER_CACHE_KIB: i32 = 16 * 1024;
/// Rows on their way from SQLite's thread to a task: a page or a group, so that the two do not take turns.
const ROW_BUFFER: usize = 1_024;

/// Our tables.
static MIGRATOR: Migrator = sqlx::migrate!("migrations/ledger/sqlite");

/// The ledger in one SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteLedger {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Keeps other coordinators out.
    _lock: Arc<FileLock>,
}

#[async_trait]
impl Ledger for SqliteLedger {
    /// Never: the lock is held as long as the process lives.
    async fn lost(&self) -> LedgerError {
        std::future::pending().await
    }

    /// The lock goes with the ledger, or with the process.
    async fn release(&self) {}
}

impl Ownership for SqliteLedger {
    /// As long as the lock is held.
    fn is_sure(&self) -> bool {
        true
    }
}

impl SqliteLedger {
    /// Opens or creates the file, brings its tables up to date, and removes what a crash left half submitted.
    pub async fn open(path: &Path) -> Result<Self, LedgerError> {
        let address = format!("sqlite://{}", path.display());
        let setup = |problem: String| LedgerError::Setup {
            address: address.clone(),
            problem,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|e| setup(format!("cannot create the folder: {e}")))?;
        }
        let lock = FileLock::take(path, &address)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A run that was accepted survives a power cut, so every commit is synced.
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            // A statement that changes many rows keeps the old pages until it ends: in memory, because the
            // file that SQLite would write them to costs a quarter of its time.
            .pragma("temp_store", "memory")
            .row_buffer_size(ROW_BUFFER)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = |size| {
            SqlitePoolOptions::new()
                .max_connections(size)
                // A file does not go away as a server does, and asking costs as much as the question itself.
                .test_before_acquire(false)
                .acquire_timeout(BUSY_TIMEOUT)
        };
        let writer = pool(1)
            .connect_with(
                options
                    .clone()
                    .pragma("cache_size", format!("-{WRITER_CACHE_KIB}")),
            )
            .await
            .map_err(|e| setup(e.to_string()))?;
        refuse_newer(&writer, &address).await?;
        MIGRATOR
            .run(&writer)
            .await
            .map_err(|e| setup(e.to_string()))?;
        let readers = pool(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(|e| setup(e.to_string()))?;
        let ledger = Self {
            writer,
            readers,
            _lock: Arc::new(lock),
        };
        ledger.remove_half_submitted().await?;
        Ok(ledger)
    }

    /// Answers nothing from now on, as a database that is away.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, LedgerError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// Ends the start when a newer program has changed the tables: this one would not know what they mean.
async fn refuse_newer(pool: &SqlitePool, address: &str) -> Result<(), LedgerError> {
    let migrated = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = '_sqlx_migrations'")
        .fetch_optional(pool)
        .await?;
    if migrated.is_none() {
        return Ok(());
    }
    let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(pool)
        .await?;
    check_version(&MIGRATOR, found, address)
}

/// Ids as the JSON array of hex texts that `unhex(value) FROM json_each(?)` reads back.
fn id_array<'a>(ids: impl IntoIterator<Item = &'a BatchId>) -> String {
    let mut json = String::from("[");
    for id in ids {
        if json.len() > 1 {
            json.push(',');
        }
        json.push('"');
        push_hex(&mut json, id.as_bytes());
        json.push('"');
    }
    json.push(']');
    json
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;

    use super::*;
    use crate::ledger::conformance;

    struct Files(tempfile::TempDir);

    impl Files {
        fn path(&self) -> std::path::PathBuf {
            self.0.path().join("folder/ledger.db")
        }
    }

    impl conformance::Backend for Files {
        type Ledger = SqliteLedger;
        const MIGRATIONS: &str = "_sqlx_migrations";

        async fn try_open(&self) -> Result<SqliteLedger, LedgerError> {
            SqliteLedger::open(&self.path()).await
        }

        async fn execute(&self, sql: &str) {
            let options = SqliteConnectOptions::new().filename(self.path());
            let mut connection = options.connect().await.unwrap();
            let sql = sqlx::AssertSqlSafe(sql.to_owned());
            sqlx::query(sql).execute(&mut connection).await.unwrap();
        }

        fn literal(&self, id: BatchId) -> String {
            format!("unhex('{id}', '-')")
        }
    }

    #[tokio::test]
    async fn passes_the_conformance_suite() {
        conformance::run(|| Files(tempfile::tempdir().unwrap())).await;
    }
}
