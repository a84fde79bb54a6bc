//! A table with declared columns: made if it is missing, checked if it is there, filled by binary COPY.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use secrecy::SecretString;
use shared::config::{ColumnType, Table};
use shared::id::BatchId;
use shared::outcome::Completed;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use super::binary::{CopyRows, HEADER, TRAILER};
use super::markers::Columns;
use super::{bounded, committed, connect, find, find_outcome, lock_making_tables};
use crate::collect::RowForm;
use crate::handler::Rows;
use crate::sink::group::{GroupWriter, Groups};
use crate::sink::marker::with_counts;
use crate::sink::table::{Fitting, Found, Shape};
use crate::sink::waiting::Write;
use crate::sink::{Committed, Grouping, Marker, Sink, SinkError};

/// A table of a PostgreSQL database as sink.
#[derive(Debug)]
pub struct PostgresTable {
    pool: PgPool,
    shape: Arc<Shape>,
    groups: Groups<Arc<CopyRows>>,
}

struct Writer {
    pool: PgPool,
    copy: String,
}

impl PostgresTable {
    /// Connects, and makes or checks the table. Several workers may do so at once.
    pub async fn connect(
        url: &SecretString,
        table: Table,
        grouping: Grouping,
        hurry: CancellationToken,
    ) -> Result<Self, SinkError> {
        let writers = u32::try_from(grouping.concurrency).unwrap_or(u32::MAX);
        let pool = connect(url, writers).await?;
        let Table { name, columns } = table;
        let shape = Arc::new(Shape::new(columns));
        let found = bounded(make(&pool, &name, &shape)).await?;
        shape.compare(&name, sql_type, &found)?;
        let copy = format!(
            "COPY \"{name}\" ({}) FROM STDIN (FORMAT binary)",
            shape.quoted_names()
        );
        let writer = Writer {
            pool: pool.clone(),
            copy,
        };
        Ok(Self {
            pool,
            shape,
            groups: Groups::start(writer, grouping, hurry),
        })
    }
}

/// The type in the form in which PostgreSQL tells it.
fn sql_type(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Text => "text",
        ColumnType::Int => "int4",
        ColumnType::Bigint => "int8",
        ColumnType::Float => "float8",
        ColumnType::Bool => "bool",
        ColumnType::Timestamp => "timestamptz",
        ColumnType::Date => "date",
        ColumnType::Json => "json",
    }
}

/// Makes the table unless there is one; tells its columns.
async fn make(pool: &PgPool, name: &str, shape: &Shape) -> Result<Vec<Found>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    lock_making_tables(&mut transaction).await?;
    let columns = shape.definitions(sql_type);
    let create = format!("CREATE TABLE IF NOT EXISTS \"{name}\" ({columns})");
    sqlx::query(AssertSqlSafe(create))
        .execute(&mut *transaction)
        .await?;
    let found = sqlx::query_as(
        "SELECT attname::text AS name, typname::text AS kind, attnotnull AS is_required, \
                atthasdef OR attidentity <> '' OR attgenerated <> '' AS has_default \
         FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid \
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
    )
    .bind(format!("\"{name}\""))
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(found)
}

#[async_trait]
impl Sink for PostgresTable {
    async fn find(&self, batch: BatchId) -> Result<Option<Completed>, SinkError> {
        find_outcome(&self.pool, batch).await
    }

    fn form(&self) -> Arc<dyn RowForm> {
        Fitting::<CopyRows>::form(&self.shape)
    }

    async fn commit(&self, marker: Marker, rows: Arc<Rows>) -> Result<Committed, SinkError> {
        let rows = if let Rows::Copy(rows) = &*rows {
            Arc::clone(rows)
        } else {
            let shape = Arc::clone(&self.shape);
            // Reading a large batch takes a while, in which nothing else should wait for this thread.
            let encoding = tokio::task::spawn_blocking(move || CopyRows::encode(&shape, &rows));
            let died = |_| SinkError::Unavailable(sqlx::Error::WorkerCrashed.into());
            Arc::new(encoding.await.map_err(died)??)
        };
        let write = Write {
            marker,
            bytes: rows.bytes() as u64,
            rows,
        };
        self.groups.commit(write).await
    }
}

#[async_trait]
impl GroupWriter for Writer {
    type Rows = Arc<CopyRows>;

    async fn write(&self, group: &[&Write<Arc<CopyRows>>]) -> Result<Vec<Committed>, SinkError> {
        let mut markers = Columns::default();
        let mut all_completed = Vec::with_capacity(group.len());
        for Write { marker, rows, .. } in group {
            let completed = with_counts(&marker.completed, rows.count() as u64, 0);
            markers.add(marker, rows.digest(), &completed)?;
            all_completed.push(completed);
        }
        let mut connection = bounded(self.pool.acquire()).await?;
        let first = match bounded(self.load(&mut connection, markers, group)).await {
            Ok(first) => first,
            Err(error) => {
                // Half a transaction, perhaps a hanging connection: nobody else should get it.
                connection.close_on_drop();
                return Err(error);
            }
        };
        drop(connection);
        committed(&self.pool, group, all_completed, &first).await
    }

    async fn look(&self, marker: &Marker) -> Result<Option<Committed>, SinkError> {
        find(&self.pool, marker).await
    }
}

impl Writer {
    /// Markers first, then rows of the batches whose marker was the first: which these are.
    async fn load(
        &self,
        connection: &mut PgConnection,
        markers: Columns,
        group: &[&Write<Arc<CopyRows>>],
    ) -> Result<HashSet<String>, sqlx::Error> {
        let mut transaction = connection.begin().await?;
        let first = markers.insert(&mut transaction).await?;
        let is_first =
            |write: &&&Write<Arc<CopyRows>>| first.contains(&write.marker.batch.to_string());
        let rows = group.iter().filter(is_first).map(|write| &*write.rows);
        let chunks: Vec<&[u8]> = rows.flat_map(CopyRows::chunks).collect();
        if !chunks.is_empty() {
            let mut copy = transaction.copy_in_raw(&self.copy).await?;
            copy.send(HEADER).await?;
            for chunk in chunks {
                copy.send(chunk).await?;
            }
            copy.send(&TRAILER[..]).await?;
            copy.finish().await?;
        }
        shared::failpoint::reach("w.sink.before_commit");
        transaction.commit().await?;
        shared::failpoint::reach("w.sink.committed");
        Ok(first)
    }
}
