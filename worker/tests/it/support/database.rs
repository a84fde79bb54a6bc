//! One sink under test, and a way to look at what it stored without it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use jiff::civil::Date;
use shared::config::{Column, Table};
use shared::search_console::{DimensionSet, SearchType};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, Row, SqlitePool};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use worker::jobs::search_console::store::SearchAnalyticsStore;
use worker::sink::files::{FilesSink, Format, Markers};
use worker::sink::postgres::{PostgresSink, PostgresTable};
use worker::sink::sqlite::{SqliteSink, SqliteTable};
use worker::sink::table::Shape;
use worker::sink::{Grouping, Sink, SinkError};

use super::parquet;
use super::postgres::Database;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// Where in it, or beside it, rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The table `results`.
    Results,
    /// The table `visits`, with [`COLUMNS`].
    Table,
    /// NDJSON files in a folder.
    Ndjson,
    /// Parquet files in a folder, with [`COLUMNS`].
    Parquet,
}

/// The columns of `visits` and of Parquet files.
pub(crate) const COLUMNS: [&str; 9] = [
    "word text",
    "small int null",
    "n bigint",
    "share float null",
    "flag bool null",
    "at timestamp null",
    "day date null",
    "doc json null",
    "note text null",
];
/// The table of typed sinks.
pub(crate) const TABLE: &str = "visits";

pub(crate) fn columns() -> Vec<Column> {
    let column = |text: &str| Column::try_from(text.to_owned()).unwrap();
    COLUMNS.map(column).into()
}

/// A fresh database with a sink on it.
pub(crate) struct Ground {
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) store: Arc<dyn SearchAnalyticsStore>,
    pub(crate) form: Form,
    look: Look,
    place: Place,
    folder: TempDir,
}

enum Look {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

enum Place {
    Sqlite(PathBuf),
    Postgres(Database),
}

impl Ground {
    pub(crate) async fn new(kind: Kind) -> Self {
        Self::of(kind, Form::Results).await
    }

    pub(crate) async fn of(kind: Kind, form: Form) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = match kind {
            Kind::Sqlite => Place::Sqlite(folder.path().join("results.db")),
            Kind::Postgres => Place::Postgres(Database::create()),
        };
        let default = open_default(&place).await;
        let sink = open(&place, form, &folder, &default).await.unwrap();
        let look = match &place {
            Place::Sqlite(path) => {
                let url = format!("sqlite://{}", path.display());
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
            store: default.store,
            form,
            look,
            place,
            folder,
        }
    }

    /// Another sink on the same database, as another worker would have it.
    pub(crate) async fn another(&self) -> Arc<dyn Sink> {
        self.reopen().await.unwrap()
    }

    /// The same, which may be refused.
    pub(crate) async fn reopen(&self) -> Result<Arc<dyn Sink>, SinkError> {
        let default = open_default(&self.place).await;
        open(&self.place, self.form, &self.folder, &default).await
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.place {
            Place::Sqlite(_) => Kind::Sqlite,
            Place::Postgres(_) => Kind::Postgres,
        }
    }

    /// Where files are.
    pub(crate) fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// The `word` and `n` of every stored row, in order of the words, by whatever reads such a place.
    pub(crate) async fn words(&self) -> Vec<(String, i64)> {
        let mut words = match self.form {
            Form::Results => {
                let rows = self.rows("json", "FROM results").await;
                rows.iter().map(|row| word(row)).collect()
            }
            Form::Table => {
                let rows = self.rows("word, n", &format!("FROM {TABLE}")).await;
                let split = |row: &String| {
                    let (word, n) = row.split_once('\t').unwrap();
                    (word.to_owned(), n.parse().unwrap())
                };
                rows.iter().map(split).collect()
            }
            Form::Ndjson => {
                let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
                let texts: Vec<String> = self.visible().into_iter().map(read).collect();
                texts
                    .iter()
                    .flat_map(|text| text.lines())
                    .map(word)
                    .collect()
            }
            Form::Parquet => {
                let files = self.visible().into_iter();
                files
                    .flat_map(|file| parquet::words(&file))
                    .collect::<Vec<_>>()
            }
        };
        words.sort();
        words
    }

    /// Files that a reader of the folder sees.
    pub(crate) fn visible(&self) -> Vec<PathBuf> {
        list(&self.files(), |name| !name.starts_with('.'))
    }

    /// Files that are being written, or were left behind.
    pub(crate) fn staged(&self) -> Vec<PathBuf> {
        list(&self.files().join(".staged"), |_| true)
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

/// The sink that there is in every installation.
struct Default {
    sink: Arc<dyn Sink>,
    store: Arc<dyn SearchAnalyticsStore>,
    markers: Arc<dyn Markers>,
}

fn settings() -> (Grouping, CancellationToken) {
    (Grouping::default(), CancellationToken::new())
}

async fn open_default(place: &Place) -> Default {
    fn of<S: Sink + SearchAnalyticsStore + Markers>(sink: S) -> Default {
        let sink = Arc::new(sink);
        Default {
            sink: Arc::clone(&sink) as _,
            store: Arc::clone(&sink) as _,
            markers: sink,
        }
    }
    let (grouping, hurry) = settings();
    match place {
        Place::Sqlite(path) => of(SqliteSink::open(path, grouping, hurry).await.unwrap()),
        Place::Postgres(database) => {
            let url = database.url().into();
            of(PostgresSink::connect(&url, grouping, hurry).await.unwrap())
        }
    }
}

async fn open(
    place: &Place,
    form: Form,
    folder: &TempDir,
    default: &Default,
) -> Result<Arc<dyn Sink>, SinkError> {
    let (grouping, hurry) = settings();
    let table = || Table {
        name: TABLE.to_owned(),
        columns: columns(),
    };
    let format = match (form, place) {
        (Form::Results, _) => return Ok(Arc::clone(&default.sink)),
        (Form::Table, Place::Sqlite(path)) => {
            let sink = SqliteTable::open(path, table(), grouping, hurry).await?;
            return Ok(Arc::new(sink));
        }
        (Form::Table, Place::Postgres(database)) => {
            let url = database.url().into();
            let sink = PostgresTable::connect(&url, table(), grouping, hurry).await?;
            return Ok(Arc::new(sink));
        }
        (Form::Ndjson, _) => Format::Ndjson,
        (Form::Parquet, _) => Format::Parquet(Arc::new(Shape::new(columns()))),
    };
    let (path, markers) = (folder.path().join("files"), Arc::clone(&default.markers));
    Ok(Arc::new(
        FilesSink::open(&path, format, markers, grouping, hurry).await?,
    ))
}

fn word(json: &str) -> (String, i64) {
    let row: serde_json::Value = serde_json::from_str(json).unwrap();
    let n = row["n"].as_i64().unwrap();
    (row["word"].as_str().unwrap().to_owned(), n)
}

fn list(folder: &Path, wanted: impl Fn(&str) -> bool + Copy) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if !wanted(entry.file_name().to_str().unwrap()) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            files.extend(list(&entry.path(), wanted));
        } else {
            files.push(entry.path());
        }
    }
    files
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
