//! Reads a sink by its pinned names only: `search_analytics_slices` and `search_analytics_<dimensions>`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use shared::search_console::{Dimension, DimensionSet};
use sqlx::{AssertSqlSafe, PgPool, Row, SqlitePool};

use super::Slice;

/// A sink's database, opened to be read.
#[derive(Debug, Clone)]
pub enum Sink {
    /// A file.
    Sqlite(SqlitePool),
    /// A server.
    Postgres(PgPool),
}

/// A row of a `search_analytics_…` table.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRow {
    /// The values of the dimensions, in order, without the date.
    pub keys: Vec<String>,
    /// Clicks.
    pub clicks: u64,
    /// Impressions.
    pub impressions: u64,
    /// Clicks by impressions.
    pub ctr: f64,
    /// Average position.
    pub position: Option<f64>,
}

/// A row of `search_analytics_slices`.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceRecord {
    /// `done`, or why there is nothing.
    pub state: String,
    /// How many rows it has.
    pub rows: u64,
    /// The sum of their clicks.
    pub clicks: u64,
    /// Whether Google held rows back.
    pub truncated: bool,
    /// Whether it will not change any more.
    pub is_final: bool,
    /// How often its rows were written.
    pub version: u64,
    /// Calls that fetching it took, when it was last fetched.
    pub api_calls: u64,
    /// What went wrong.
    pub error: Option<String>,
}

/// A row of `search_analytics_properties`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyRecord {
    /// `active`, or why nothing comes: `permission_lost`, `quota_limited`, …
    pub state: String,
    /// More about it, for a person.
    pub detail: Option<String>,
}

const SLICES: &str = "select site_url, search_type, dimension_set, cast(date as text), state, \
     cast(rows as bigint), cast(clicks as bigint), cast(truncated as integer), cast(is_final as integer), \
     cast(version as bigint), error, cast(api_calls as bigint) from search_analytics_slices";

/// Runs the same statements on both databases; their row types differ, so a macro stands in for a trait.
macro_rules! on_both {
    ($sink:expr, $pool:ident => $body:expr) => {
        match $sink {
            Sink::Sqlite($pool) => $body,
            Sink::Postgres($pool) => $body,
        }
    };
}

macro_rules! stored_row {
    ($row:expr, $keys:expr) => {{
        let keys = (0..$keys)
            .map(|i| $row.try_get::<String, _>(i))
            .collect::<Result<_, _>>()?;
        StoredRow {
            keys,
            clicks: u64::try_from($row.try_get::<i64, _>($keys)?)?,
            impressions: u64::try_from($row.try_get::<i64, _>($keys + 1)?)?,
            ctr: $row.try_get($keys + 2)?,
            position: $row.try_get($keys + 3)?,
        }
    }};
}

macro_rules! slice_record {
    ($row:expr) => {{
        let slice = Slice {
            property: $row.try_get(0)?,
            search_type: $row.try_get::<String, _>(1)?.parse()?,
            dimensions: $row.try_get::<String, _>(2)?.parse()?,
            date: $row.try_get::<String, _>(3)?.parse()?,
        };
        let count = |value: Option<i64>| u64::try_from(value.unwrap_or_default());
        let record = SliceRecord {
            state: $row.try_get(4)?,
            rows: count($row.try_get(5)?)?,
            clicks: count($row.try_get(6)?)?,
            truncated: $row.try_get::<Option<i32>, _>(7)? == Some(1),
            is_final: $row.try_get::<Option<i32>, _>(8)? == Some(1),
            version: count($row.try_get(9)?)?,
            error: $row.try_get(10)?,
            api_calls: count($row.try_get(11)?)?,
        };
        (slice, record)
    }};
}

impl Sink {
    /// Opens `sqlite://path` or `postgres://…`.
    pub async fn open(url: &str) -> Result<Self> {
        if let Some(path) = url.strip_prefix("sqlite://") {
            let options = sqlx::sqlite::SqliteConnectOptions::new()
                .filename(path)
                .read_only(true);
            let pool = SqlitePool::connect_with(options)
                .await
                .with_context(|| format!("opening {path}"))?;
            return Ok(Self::Sqlite(pool));
        }
        if url.starts_with("postgres") {
            return Ok(Self::Postgres(
                PgPool::connect(url)
                    .await
                    .context("connecting to PostgreSQL")?,
            ));
        }
        bail!("a sink is sqlite://path or postgres://…");
    }

    /// What is recorded of every slice.
    pub async fn slices(&self) -> Result<BTreeMap<Slice, SliceRecord>> {
        on_both!(self, pool => {
            let rows = sqlx::query(SLICES).fetch_all(pool).await.context("reading the slices")?;
            rows.iter().map(|row| Ok(slice_record!(row))).collect()
        })
    }

    /// What is recorded of every property.
    pub async fn properties(&self) -> Result<BTreeMap<String, PropertyRecord>> {
        const SQL: &str = "select site_url, state, detail from search_analytics_properties";
        on_both!(self, pool => {
            let rows = sqlx::query(SQL).fetch_all(pool).await.context("reading the properties")?;
            rows.iter()
                .map(|row| {
                    let record = PropertyRecord { state: row.try_get(1)?, detail: row.try_get(2)? };
                    Ok((row.try_get(0)?, record))
                })
                .collect()
        })
    }

    /// The rows of one slice.
    pub async fn rows(&self, slice: &Slice) -> Result<Vec<StoredRow>> {
        let keys = key_columns(&slice.dimensions);
        let sql = self.rows_sql(&slice.dimensions, &keys);
        let (count, date) = (keys.len(), slice.date.to_string());
        on_both!(self, pool => {
            let query = sqlx::query(AssertSqlSafe(sql))
                .bind(&slice.property)
                .bind(slice.search_type.as_str())
                .bind(date);
            let rows = query.fetch_all(pool).await.with_context(|| format!("reading {slice}"))?;
            rows.iter().map(|row| Ok(stored_row!(row, count))).collect()
        })
    }

    /// The answer of a query for one number.
    pub async fn number(&self, sql: &str) -> Result<u64> {
        let number: i64 = on_both!(self, pool => {
            sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.with_context(|| sql.to_owned())?
        });
        Ok(u64::try_from(number)?)
    }

    /// The answers of a query for texts.
    pub async fn texts(&self, sql: &str) -> Result<Vec<String>> {
        on_both!(self, pool => {
            let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
            query.fetch_all(pool).await.with_context(|| sql.to_owned())
        })
    }

    fn rows_sql(&self, dimensions: &DimensionSet, keys: &[&str]) -> String {
        // SQLite would make a number of a text that is cast to a date.
        let date = match self {
            Self::Sqlite(_) => "$3",
            Self::Postgres(_) => "cast($3 as date)",
        };
        let keys: String = keys.iter().flat_map(|key| [*key, ", "]).collect();
        format!(
            "select {keys}cast(clicks as bigint), cast(impressions as bigint), \
             cast(ctr as double precision), cast(position as double precision) \
             from {} where site_url = $1 and search_type = $2 and date = {date}",
            dimensions.table()
        )
    }
}

fn key_columns(dimensions: &DimensionSet) -> Vec<&'static str> {
    let others = dimensions
        .dimensions()
        .iter()
        .filter(|&&dimension| dimension != Dimension::Date);
    others.map(|dimension| dimension.as_str()).collect()
}
