//! One sink under test, and a way to look into its database without it.

use std::str::FromStr;
use std::sync::Arc;

use jiff::civil::Date;
use shared::search_console::{DimensionSet, SearchType};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, Row, SqlitePool};
use tempfile::TempDir;
use worker::jobs::search_console::store::SearchAnalyticsStore;
use worker::sink::Sink;
use worker::sink::postgres::PostgresSink;
use worker::sink::sqlite::SqliteSink;

use super::postgres::Database;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// A fresh database with a sink on it.
pub(crate) struct Ground {
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) store: Arc<dyn SearchAnalyticsStore>,
    look: Look,
    place: Place,
}

enum Look {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

enum Place {
    Sqlite(TempDir),
    Postgres(Database),
}

impl Ground {
    pub(crate) async fn new(kind: Kind) -> Self {
        let place = match kind {
            Kind::Sqlite => Place::Sqlite(tempfile::tempdir().unwrap()),
            Kind::Postgres => Place::Postgres(Database::create()),
        };
        let (sink, store) = open(&place).await;
        let look = match &place {
            Place::Sqlite(folder) => {
                let url = format!("sqlite://{}", folder.path().join("results.db").display());
                Look::Sqlite(SqlitePool::connect_lazy_with(
                    SqliteConnectOptions::from_str(&url).unwrap(),
                ))
            }
            Place::Postgres(database) => {
                Look::Postgres(PgPool::connect_lazy(&database.url()).unwrap())
            }
        };
        Self {
            sink,
            store,
            look,
            place,
        }
    }

    /// Another sink on the same database, as another worker would have it.
    pub(crate) async fn another(&self) -> Arc<dyn Sink> {
        open(&self.place).await.0
    }

    /// The rows of a query, columns joined by tabs. Every column must be text.
    pub(crate) async fn rows(&self, columns: &str, rest: &str) -> Vec<String> {
        let columns: Vec<String> = columns
            .split(',')
            .map(|c| format!("coalesce(cast({} as text), 'NULL')", c.trim()))
            .collect();
        let sql = AssertSqlSafe(format!("SELECT {} {rest}", columns.join(" || '\t' || ")));
        match &self.look {
            Look::Sqlite(pool) => sqlx::query_scalar(sql).fetch_all(pool).await.unwrap(),
            Look::Postgres(pool) => sqlx::query_scalar(sql).fetch_all(pool).await.unwrap(),
        }
    }

    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.look {
            Look::Sqlite(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
            Look::Postgres(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
        }
    }
}

async fn open(place: &Place) -> (Arc<dyn Sink>, Arc<dyn SearchAnalyticsStore>) {
    match place {
        Place::Sqlite(folder) => {
            let sink = Arc::new(
                SqliteSink::open(&folder.path().join("results.db"))
                    .await
                    .unwrap(),
            );
            (Arc::clone(&sink) as _, sink)
        }
        Place::Postgres(database) => {
            let sink = Arc::new(PostgresSink::connect(&database.url().into()).await.unwrap());
            (Arc::clone(&sink) as _, sink)
        }
    }
}

/// A stored row: keys, clicks, impressions, and the bits of ctr and position.
pub(crate) type Fact = (Vec<String>, u64, u64, u64, Option<u64>);

impl Ground {
    /// The rows of one slice, sorted, read through the pinned name.
    pub(crate) async fn facts(
        &self,
        set: &DimensionSet,
        site: &str,
        search_type: SearchType,
        date: Date,
    ) -> Vec<Fact> {
        let keys: Vec<String> = set
            .dimensions()
            .iter()
            .map(|d| format!("cast({} AS text)", d.as_str()))
            .collect();
        let sql = AssertSqlSafe(format!(
            "SELECT clicks, impressions, ctr, position, {} FROM {} \
             WHERE site_url = '{site}' AND search_type = '{search_type}' AND date = '{date}'",
            keys.join(", "),
            set.table()
        ));
        let width = keys.len();
        let mut facts: Vec<Fact> = match &self.look {
            Look::Sqlite(pool) => sqlx::query(sql)
                .fetch_all(pool)
                .await
                .unwrap()
                .iter()
                .map(|row| fact(row, width))
                .collect(),
            Look::Postgres(pool) => sqlx::query(sql)
                .fetch_all(pool)
                .await
                .unwrap()
                .iter()
                .map(|row| fact(row, width))
                .collect(),
        };
        facts.sort();
        facts
    }
}

fn fact<R: Row>(row: &R, width: usize) -> Fact
where
    usize: sqlx::ColumnIndex<R>,
    i64: for<'r> sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    f64: for<'r> sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    Option<f64>: for<'r> sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    String: for<'r> sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let keys = (4..4 + width)
        .map(|column| row.get::<String, _>(column))
        .collect();
    let number = |column: usize| u64::try_from(row.get::<i64, _>(column)).unwrap();
    let position: Option<f64> = row.get(3);
    (
        keys,
        number(0),
        number(1),
        row.get::<f64, _>(2).to_bits(),
        position.map(f64::to_bits),
    )
}
