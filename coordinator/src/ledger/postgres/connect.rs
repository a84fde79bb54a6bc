//! Connections to the database, and its tables.

use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use shared::backoff::Backoff;
use shared::tls::Untrusted;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tokio::time::{sleep, timeout};

use crate::ledger::{LedgerError, check_version};

/// Connections of one coordinator: submissions, settlement, dispatch and the API at once.
const CONNECTIONS: u32 = 10;
/// How long to wait for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a starting coordinator waits for a database that starts, too.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Limits on the server's side, for sessions whose coordinator is gone or frozen: it must not keep its
/// locks for longer than its successor waits. Plans here are short and their costs hard to guess (the step
/// from key to key), so compiling them never pays.
const SESSION: &str = "SET statement_timeout = '50s'; SET lock_timeout = '30s'; \
                       SET idle_in_transaction_session_timeout = '10s'; SET jit = off";
/// The sink may live in the same database and has migrations of its own.
const MIGRATIONS: &str = "_tidegate_ledger_migrations";

/// Waits for the database to be there. What waiting would not mend is said at once.
pub(super) async fn connect(url: &SecretString, address: &str) -> Result<PgPool, LedgerError> {
    let setup = |problem: String| LedgerError::Setup {
        address: address.to_owned(),
        problem,
    };
    // The parser's own words could repeat the password.
    let options: PgConnectOptions = url
        .expose_secret()
        .parse()
        .map_err(|_| setup("is no PostgreSQL URL".to_owned()))?;
    let options = options.application_name("tidegate-coordinator");
    let give_up = Instant::now() + START_PATIENCE;
    for failures in 1.. {
        let problem = match timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(&options)).await {
            Ok(Ok(connection)) => {
                let _ = connection.close().await;
                break;
            }
            Ok(Err(error)) => match untrusted(&error) {
                Some(problem) => {
                    let address = address.to_owned();
                    return Err(LedgerError::Untrusted { address, problem });
                }
                None if !may_heal(&error) => return Err(setup(error.to_string())),
                None => error,
            },
            Err(_) => sqlx::Error::PoolTimedOut,
        };
        if Instant::now() >= give_up {
            return Err(problem.into());
        }
        tracing::warn!(error = %problem, address, "waiting for the ledger's database");
        sleep(Backoff::RECONNECT.draw(failures)).await;
    }
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute(sqlx::raw_sql(SESSION)).await.map(drop) })
        })
        .connect_with(options)
        .await?;
    Ok(pool)
}

/// Whether TLS did not come about.
fn untrusted(error: &sqlx::Error) -> Option<Untrusted> {
    match error {
        sqlx::Error::Tls(problem) => Some(Untrusted::Plain(problem.to_string())),
        error => Untrusted::find_postgres(error),
    }
}

/// Whether a later attempt may succeed: nobody answers, or the server is starting, stopping or full.
fn may_heal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| ["57P0", "53"].iter().any(|class| code.starts_with(class))),
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        _ => false,
    }
}

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("migrations/ledger/postgres");
    migrator.dangerous_set_table_name(MIGRATIONS);
    migrator
}

/// The version of the tables, if there are any. A version that this program does not know is refused: it
/// would not know what the tables mean.
pub(super) async fn version(pool: &PgPool, address: &str) -> Result<Option<i64>, LedgerError> {
    let migrated: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(MIGRATIONS)
        .fetch_one(pool)
        .await?;
    if !migrated {
        return Ok(None);
    }
    let found = sqlx::query_scalar("SELECT max(version) FROM _tidegate_ledger_migrations")
        .fetch_one(pool)
        .await?;
    check_version(&migrator(), found, address)?;
    Ok(found)
}

/// Brings the tables up to date. Several programs may do so at once: sqlx takes an advisory lock.
pub(super) async fn migrate(pool: &PgPool, address: &str) -> Result<(), LedgerError> {
    let mut connection = pool.acquire().await?;
    // An index over millions of batches takes longer than any other statement.
    connection.execute("SET statement_timeout = 0").await?;
    let migrated = migrator().run(&mut *connection).await;
    // Closed, because the limit is gone.
    connection.close().await?;
    migrated.map_err(|error| LedgerError::Setup {
        address: address.to_owned(),
        problem: error.to_string(),
    })
}
