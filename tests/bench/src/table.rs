//! The reference of submissions: the same batches written into one table, by the fastest way that the database has,
//! with nothing read, checked or indexed besides the key.

use std::fmt::Write;
use std::time::Instant;

use anyhow::Result;
use harness::postgres;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, QueryBuilder, Sqlite};

use crate::tidegate::Ledger;
use crate::{payload, per_second};

const CREATE: &str = "CREATE TABLE bare (number bigint PRIMARY KEY, body text NOT NULL)";
/// Rows of one transaction, each synced.
const GROUP: usize = 2_000;
/// Rows of one statement, where rows are bound.
const ROWS: usize = 500;

/// Rows per second.
pub async fn rate(ledger: Ledger, rows: usize) -> Result<f64> {
    let rows: Vec<(usize, String)> = (0..rows)
        .map(|number| (number, payload(number).to_string()))
        .collect();
    match ledger {
        Ledger::Sqlite => sqlite(&rows).await,
        Ledger::Postgres => postgres(&rows).await,
    }
}

async fn sqlite(rows: &[(usize, String)]) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let mut connection = SqliteConnectOptions::new()
        .filename(folder.path().join("bare.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .connect()
        .await?;
    sqlx::query(CREATE).execute(&mut connection).await?;
    let start = Instant::now();
    for group in rows.chunks(GROUP) {
        let mut transaction = connection.begin().await?;
        for rows in group.chunks(ROWS) {
            let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO bare ");
            insert.push_values(rows, |mut row, (number, body)| {
                row.push_bind(i64::try_from(*number).unwrap_or(i64::MAX))
                    .push_bind(body);
            });
            insert.build().execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
    }
    Ok(per_second(rows.len(), start.elapsed()))
}

async fn postgres(rows: &[(usize, String)]) -> Result<f64> {
    let mut connection = PgConnection::connect(&postgres::shared().new_database()?).await?;
    sqlx::query(CREATE).execute(&mut connection).await?;
    let start = Instant::now();
    for group in rows.chunks(GROUP) {
        let mut text = String::new();
        for (number, body) in group {
            // JSON without escapes: what COPY would take for its own does not occur.
            writeln!(text, "{number}\t{body}")?;
        }
        let mut copy = connection.copy_in_raw("COPY bare FROM STDIN").await?;
        copy.send(text.as_bytes()).await?;
        copy.finish().await?;
    }
    Ok(per_second(rows.len(), start.elapsed()))
}
