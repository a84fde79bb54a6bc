//! INSERT of many rows.

use std::sync::Arc;

use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::sink_error;
use crate::sink::SinkError;

/// Rows of one INSERT: large ones first, then what is left. Few texts, so that all stay prepared.
const ROWS_PER_INSERT: [usize; 5] = [256, 64, 16, 4, 1];
/// Most values of one statement (SQLite's `SQLITE_MAX_VARIABLE_NUMBER`).
const MAX_VALUES: usize = 32_766;

/// Inserts rows many at a time: a statement costs a trip to the connection's thread, whatever it holds.
pub(super) async fn insert_rows(
    connection: &mut SqliteConnection,
    count: usize,
    columns: usize,
    statement: impl Fn(usize) -> String,
    bind: impl Fn(&mut SqliteArguments, usize) -> Result<(), sqlx::error::BoxDynError>,
) -> Result<(), SinkError> {
    let mut next = 0;
    for size in ROWS_PER_INSERT {
        if count - next < size || size * columns > MAX_VALUES {
            continue;
        }
        let sql: Arc<str> = statement(size).into();
        while count - next >= size {
            let mut arguments = SqliteArguments::default();
            for index in next..next + size {
                bind(&mut arguments, index).map_err(|e| sink_error(sqlx::Error::Encode(e)))?;
            }
            sqlx::query_with(AssertSqlSafe(Arc::clone(&sql)), arguments)
                .execute(&mut *connection)
                .await
                .map_err(sink_error)?;
            next += size;
        }
    }
    Ok(())
}

/// The rows of several batches one behind the other: whose each is, and its number there.
pub(super) fn in_a_row(counts: impl Iterator<Item = usize>) -> Vec<(usize, usize)> {
    let rows = |(batch, count)| (0..count).map(move |row| (batch, row));
    counts.enumerate().flat_map(rows).collect()
}

pub(super) fn placeholders(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    vec![row; rows].join(", ")
}
