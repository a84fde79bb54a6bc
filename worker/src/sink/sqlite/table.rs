//! A table with declared columns: made if it is missing, checked if it is there.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use shared::config::{ColumnType, Table};
use shared::id::BatchId;
use shared::outcome::Completed;
use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqliteConnection, SqlitePool};
use tokio_util::sync::CancellationToken;

use super::insert::{in_a_row, insert_rows, placeholders};
use super::transaction::{RowWriter, Writer};
use super::{find_outcome, open, sink_error};
use crate::collect::RowForm;
use crate::handler::Rows;
use crate::json_rows::JsonRows;
use crate::sink::group::Groups;
use crate::sink::marker::with_counts;
use crate::sink::table::{Cell, Fitting, Found, Shape, documents};
use crate::sink::waiting::Write;
use crate::sink::{Committed, Grouping, Marker, Sink, SinkError};

/// A table of an SQLite file as sink.
#[derive(Debug)]
pub struct SqliteTable {
    /// Connections that do not write groups.
    others: SqlitePool,
    shape: Arc<Shape>,
    groups: Groups<Arc<Rows>>,
}

/// What is written into.
struct Target {
    table: String,
    shape: Arc<Shape>,
}

impl SqliteTable {
    /// Opens or makes the file, and makes or checks the table. Several processes may do so at once.
    pub async fn open(
        path: &Path,
        table: Table,
        grouping: Grouping,
        hurry: CancellationToken,
    ) -> Result<Self, SinkError> {
        let pools = open(path).await?;
        let shape = Arc::new(Shape::new(table.columns));
        let found = make(&pools.writer, &table.name, &shape)
            .await
            .map_err(sink_error)?;
        shape.compare(&table.name, sql_type, &found)?;
        let others = pools.others.clone();
        let writer = Writer {
            pools,
            rows: Target {
                table: table.name,
                shape: Arc::clone(&shape),
            },
        };
        Ok(Self {
            others,
            shape,
            groups: Groups::start(writer, grouping, hurry),
        })
    }
}

/// SQLite has no type for moments and days: they are text, which sorts as they do.
fn sql_type(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Int | ColumnType::Bigint | ColumnType::Bool => "INTEGER",
        ColumnType::Float => "REAL",
        ColumnType::Text | ColumnType::Timestamp | ColumnType::Date | ColumnType::Json => "TEXT",
    }
}

/// Makes the table unless there is one; tells its columns.
async fn make(pool: &SqlitePool, name: &str, shape: &Shape) -> Result<Vec<Found>, sqlx::Error> {
    let columns = shape.definitions(sql_type);
    let create = format!("CREATE TABLE IF NOT EXISTS \"{name}\" ({columns}) STRICT");
    sqlx::query(AssertSqlSafe(create)).execute(pool).await?;
    sqlx::query_as(
        "SELECT name, type AS kind, \"notnull\" AS is_required, dflt_value IS NOT NULL OR pk > 0 AS has_default \
         FROM pragma_table_info(?)",
    )
    .bind(name.to_owned())
    .fetch_all(pool)
    .await
}

#[async_trait]
impl Sink for SqliteTable {
    async fn find(&self, batch: BatchId) -> Result<Option<Completed>, SinkError> {
        find_outcome(&self.others, batch).await
    }

    fn form(&self) -> Arc<dyn RowForm> {
        Fitting::<JsonRows>::form(&self.shape)
    }

    async fn commit(&self, marker: Marker, rows: Arc<Rows>) -> Result<Committed, SinkError> {
        self.shape.check(&rows)?;
        self.groups.commit(Write::new(marker, rows)).await
    }
}

#[async_trait]
impl RowWriter for Target {
    async fn write(
        &self,
        connection: &mut SqliteConnection,
        group: &[&Write<Arc<Rows>>],
    ) -> Result<Vec<Completed>, SinkError> {
        let columns = self.shape.columns().len();
        let documents: Vec<_> = group
            .iter()
            .map(|write| documents(&write.rows))
            .collect::<Result<_, _>>()?;
        let places = in_a_row(documents.iter().map(|rows| rows.len()));
        let insert = |count: usize| {
            let (table, names) = (&self.table, self.shape.quoted_names());
            let values = placeholders(count, columns);
            format!("INSERT INTO \"{table}\" ({names}) VALUES {values}")
        };
        let bind = |arguments: &mut SqliteArguments, index: usize| {
            let (of, number) = places[index];
            let cells = self.shape.read(number, &documents[of][number])?;
            cells.iter().try_for_each(|cell| add(arguments, cell))
        };
        insert_rows(connection, places.len(), columns, insert, bind).await?;
        let completed =
            |write: &&Write<Arc<Rows>>| with_counts(&write.marker.completed, write.rows.count(), 0);
        Ok(group.iter().map(completed).collect())
    }
}

fn add(arguments: &mut SqliteArguments, cell: &Cell<'_>) -> Result<(), BoxDynError> {
    match cell {
        Cell::Null => arguments.add(None::<String>),
        Cell::Text(text) => arguments.add(text.clone().into_owned()),
        Cell::Json(text) => arguments.add((*text).to_owned()),
        Cell::Integer(number) => arguments.add(*number),
        Cell::Float(number) => arguments.add(*number),
        Cell::Bool(is_true) => arguments.add(i64::from(*is_true)),
        Cell::Timestamp(timestamp) => arguments.add(in_microseconds(*timestamp)),
        Cell::Date(day) => arguments.add(day.to_string()),
    }
}

/// Always as long, so that texts sort as moments do.
fn in_microseconds(timestamp: jiff::Timestamp) -> String {
    format!("{timestamp:.6}")
}
