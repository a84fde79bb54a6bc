//! `[sink]` and `[sinks.<name>]`: where results go, and how they are grouped on the way.
//!
//! ```toml
//! [sinks.visits]
//! url = "postgres://tidegate@db/warehouse"
//! table = "visits"
//! columns = ["at timestamp", "page text", "clicks bigint", "referrer text null"]
//! concurrency = 2
//!
//! [sinks.archive]
//! kind = "parquet"
//! folder = "/data/archive"
//! columns = ["at timestamp", "page text"]
//! size = 40
//! timeout = "30s"
//!
//! [pipelines.crawl]
//! command = ["python3", "crawl.py"]
//! sink = "visits"
//! ```

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

use super::{Column, Config, ConfigError, DatabaseUrl, Size, Span};
use crate::name::{PipelineName, SinkName};
use crate::search_console::{PLAN_PIPELINE, SLICE_PIPELINE};

/// A sink. `TIDEGATE_SINK__…` for the default one, which is a database without a table of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SinkConfig {
    /// What it is. Default `database`.
    pub kind: SinkKind,
    /// `database`: `sqlite://…` or `postgres://…`. Default: that of `[sink]`, and there `results.db` in `data_dir`.
    pub url: Option<DatabaseUrl>,
    /// The same from a file, such as a mounted secret. Not together with `url`.
    pub url_file: Option<PathBuf>,
    /// `ndjson`, `parquet`: the folder of the files, the same for all workers. Default: one with the sink's name in
    /// `data_dir`. The commit markers are in the database of `[sink]`.
    pub folder: Option<PathBuf>,
    /// `database`: the table that rows go into. It is made if it is missing, and compared with `columns` if not.
    /// Default: `results`, where a row is a JSON document.
    pub table: Option<String>,
    /// The columns of `table`, or of `parquet` files (1–250), such as `["at timestamp", "referrer text null"]`: each
    /// takes the field of its name. Types are `text`, `int`, `bigint`, `float`, `bool`, `timestamp`, `date` and `json`.
    /// A row with another field, without one of these, or with one of another type fails its batch.
    pub columns: Vec<Column>,
    /// Most batches of one transaction, or of one file (1–10,000). Default 256.
    pub size: u32,
    /// How long a finished batch waits for others of its batch key (up to 1 min), such as `"2s"`, counted from the
    /// first of a group. Default: not at all; a group is what gathers while others are written. Not more batches than
    /// a worker has in hand can wait, so `size` must be at most `worker.slots` + `worker.look_ahead`.
    pub timeout: Option<Span>,
    /// Most bytes of rows on the way into the sink, of one worker. A batch that finds no room keeps its slot until there
    /// is; a larger one than this goes alone. Groups end at this by `concurrency`. Default 64 MiB.
    pub bytes: Size,
    /// How many groups are written at once (1–16; 1 for SQLite, which has one writer at a time). Default 1.
    pub concurrency: u32,
}

/// What a sink is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkKind {
    /// SQLite or PostgreSQL.
    #[default]
    Database,
    /// Files of one JSON document a line.
    Ndjson,
    /// Parquet files.
    Parquet,
}

/// Where a pipeline's results go: `true`, `false`, or the name of a sink.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SinkChoice {
    /// Into the default sink.
    #[default]
    Default,
    /// Nowhere.
    None,
    /// Into this one.
    Named(SinkName),
}

/// A table with declared columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<Column>,
}

/// Where a sink is, with all that belongs there.
#[derive(Debug, Clone)]
pub enum SinkPlace {
    /// The table `results` of a database.
    Results(DatabaseUrl),
    /// A table with declared columns.
    Table(DatabaseUrl, Table),
    /// A folder of NDJSON files.
    Ndjson(PathBuf),
    /// A folder of Parquet files.
    Parquet(PathBuf, Vec<Column>),
}

impl SinkPlace {
    /// The place without user and password, for logs and errors.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Results(url) => url.address(),
            Self::Table(url, table) => format!("{} table {}", url.address(), table.name),
            Self::Ndjson(folder) | Self::Parquet(folder, _) => folder.display().to_string(),
        }
    }
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self {
            kind: SinkKind::Database,
            url: None,
            url_file: None,
            folder: None,
            table: None,
            columns: Vec::new(),
            size: 256,
            timeout: None,
            bytes: Size::mebibytes(64),
            concurrency: 1,
        }
    }
}

impl From<bool> for SinkChoice {
    fn from(is_stored: bool) -> Self {
        if is_stored { Self::Default } else { Self::None }
    }
}

impl<'de> Deserialize<'de> for SinkChoice {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected true, false or the name of a sink")]
        enum Word {
            Whether(bool),
            Name(String),
        }
        match Word::deserialize(d)? {
            Word::Whether(is_stored) => Ok(is_stored.into()),
            Word::Name(name) => SinkName::new(&name)
                .map(Self::Named)
                .map_err(serde::de::Error::custom),
        }
    }
}

/// Whether databases take it for a name without further ado.
pub(super) fn is_identifier(name: &str) -> bool {
    const LONGEST: usize = 63;
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.len() <= LONGEST
        && name.starts_with(is_letter)
        && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

impl SinkConfig {
    const MAX_SIZE: u32 = 10_000;
    const MAX_CONCURRENCY: u32 = 16;
    /// RabbitMQ's patience with a delivery, less the longest deadline, leaves a few minutes for storing.
    const MAX_TIMEOUT: Span = Span::seconds(60);
    const MAX_COLUMNS: usize = 250;
    /// What Tidegate and the databases keep for themselves.
    const RESERVED: [&str; 7] = [
        "results",
        "batch_",
        "search_analytics_",
        "_tidegate",
        "_sqlx",
        "sqlite_",
        "pg_",
    ];

    fn check(&self, section: &str, database: &DatabaseUrl) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::wrong(format!("{section}.{key}"), problem))
        };
        let in_range = |number: u32, most: u32| (1..=most).contains(&number);
        if !in_range(self.size, Self::MAX_SIZE) {
            let problem = format!("must be 1 to {}, is {}", Self::MAX_SIZE, self.size);
            return wrong("size", problem);
        }
        if !in_range(self.concurrency, Self::MAX_CONCURRENCY) {
            let problem = format!(
                "must be 1 to {}, is {}",
                Self::MAX_CONCURRENCY,
                self.concurrency
            );
            return wrong("concurrency", problem);
        }
        let is_database = self.kind == SinkKind::Database;
        if is_database && matches!(database, DatabaseUrl::Sqlite(_)) && self.concurrency > 1 {
            return wrong(
                "concurrency",
                "must be 1 for SQLite, which has one writer at a time".into(),
            );
        }
        if let Some(timeout) = self.timeout.filter(|timeout| *timeout > Self::MAX_TIMEOUT) {
            let problem = format!("must be at most {}, is {timeout}", Self::MAX_TIMEOUT);
            return wrong("timeout", problem);
        }
        for (key, is_given, kinds) in [
            ("url", self.url.is_some(), "kind = \"database\""),
            ("table", self.table.is_some(), "kind = \"database\""),
            (
                "folder",
                self.folder.is_some(),
                "kind = \"ndjson\" or \"parquet\"",
            ),
        ] {
            if is_given && is_database != kinds.contains("database") {
                return wrong(key, format!("belongs to {kinds} alone"));
            }
        }
        self.check_columns(section)
    }

    fn check_columns(&self, section: &str) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::wrong(format!("{section}.{key}"), problem))
        };
        if let Some(table) = &self.table {
            if !is_identifier(table) {
                return wrong(
                    "table",
                    format!("is {table:?}: use letters, digits and '_', at most 63"),
                );
            }
            let lower = table.to_ascii_lowercase();
            if let Some(taken) = Self::RESERVED.iter().find(|name| lower.starts_with(*name)) {
                return wrong(
                    "table",
                    format!("is {table:?}: names that start with {taken:?} are taken"),
                );
            }
        }
        let has_columns = self.table.is_some() || self.kind == SinkKind::Parquet;
        if !has_columns && !self.columns.is_empty() {
            return wrong(
                "columns",
                "belong to a table or to kind = \"parquet\"".into(),
            );
        }
        if has_columns && !(1..=Self::MAX_COLUMNS).contains(&self.columns.len()) {
            let problem = format!(
                "must be 1 to {} such as \"clicks bigint\", are {}",
                Self::MAX_COLUMNS,
                self.columns.len()
            );
            return wrong("columns", problem);
        }
        let mut names = BTreeSet::new();
        let is_new = |column: &&Column| !names.insert(column.name.to_ascii_lowercase());
        match self.columns.iter().find(is_new) {
            // SQLite does not tell capitals from small letters.
            Some(column) => wrong("columns", format!("name {:?} twice", column.name)),
            None => Ok(()),
        }
    }
}

impl Config {
    /// The default sink's database: the configured one, else a file in `data_dir`.
    #[must_use]
    pub fn sink_url(&self) -> DatabaseUrl {
        self.sink
            .url
            .clone()
            .unwrap_or_else(|| DatabaseUrl::file(&self.data_dir, "results.db"))
    }

    /// Where a sink of `[sinks]` is.
    #[must_use]
    pub fn sink_place(&self, name: &SinkName, sink: &SinkConfig) -> SinkPlace {
        let folder = || {
            let default = || self.data_dir.join(name.as_str());
            sink.folder.clone().unwrap_or_else(default)
        };
        match (sink.kind, &sink.table) {
            (SinkKind::Ndjson, _) => SinkPlace::Ndjson(folder()),
            (SinkKind::Parquet, _) => SinkPlace::Parquet(folder(), sink.columns.clone()),
            (SinkKind::Database, None) => SinkPlace::Results(self.database_of(sink)),
            (SinkKind::Database, Some(table)) => SinkPlace::Table(
                self.database_of(sink),
                Table {
                    name: table.clone(),
                    columns: sink.columns.clone(),
                },
            ),
        }
    }

    fn database_of(&self, sink: &SinkConfig) -> DatabaseUrl {
        sink.url.clone().unwrap_or_else(|| self.sink_url())
    }

    pub(super) fn check_sinks(&self) -> Result<(), ConfigError> {
        self.sink.check("sink", &self.sink_url())?;
        for (key, is_given) in [
            ("kind", self.sink.kind != SinkKind::Database),
            ("table", self.sink.table.is_some()),
        ] {
            if is_given {
                return Err(ConfigError::wrong(
                    format!("sink.{key}"),
                    "belongs to a sink of its own: the default one keeps commit markers and the Search Console's \
                     tables; write [sinks.NAME], and sink = \"NAME\" in the pipeline",
                ));
            }
        }
        for (name, sink) in &self.sinks {
            sink.check(&format!("sinks.{name}"), &self.database_of(sink))?;
        }
        for (pipeline, config) in &self.pipelines {
            if let SinkChoice::Named(sink) = &config.sink {
                self.check_choice(pipeline, sink)?;
            }
        }
        Ok(())
    }

    fn check_choice(&self, pipeline: &PipelineName, sink: &SinkName) -> Result<(), ConfigError> {
        let wrong = |problem: String| {
            Err(ConfigError::wrong(
                format!("pipelines.{pipeline}.sink"),
                problem,
            ))
        };
        if [PLAN_PIPELINE, SLICE_PIPELINE].contains(&pipeline.as_str()) {
            return wrong(
                "cannot be chosen: the Search Console job keeps its rows in [sink]".into(),
            );
        }
        if self.sinks.contains_key(sink) {
            return Ok(());
        }
        let known: Vec<&str> = self.sinks.keys().map(SinkName::as_str).collect();
        wrong(format!(
            "names {sink}, which is not configured; configured are {}",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        ))
    }

    /// Whether this worker can have enough batches in hand to fill the groups of a sink that waits for them. Only a
    /// worker can tell: its slots are its own.
    pub fn check_group(&self, name: &SinkName) -> Result<(), ConfigError> {
        let Some(sink) = self.sinks.get(name) else {
            return Ok(());
        };
        let in_hand = self.worker.slots + self.worker.look_ahead;
        if sink.timeout.is_some() && sink.size > in_hand {
            return Err(ConfigError::wrong(
                format!("sinks.{name}.size"),
                format!(
                    "{} > worker.slots + worker.look_ahead = {in_hand}: no group would ever be full, and each would wait \
                     for its timeout",
                    sink.size
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{problem, read};
    use super::*;

    const NOOP: &str = "[pipelines.x]\nhandler = \"noop\"\n";

    #[test]
    fn a_pipeline_says_where_its_results_go() {
        let choice = |word: &str| {
            let toml = format!("{NOOP}sink = {word}\n[sinks.visits]\nkind = \"ndjson\"");
            let config = read(&toml).unwrap();
            config.pipelines[&PipelineName::new("x").unwrap()]
                .sink
                .clone()
        };
        assert_eq!(choice("true"), SinkChoice::Default);
        assert_eq!(choice("false"), SinkChoice::None);
        let visits = SinkName::new("visits").unwrap();
        assert_eq!(choice("\"visits\""), SinkChoice::Named(visits));
        assert_eq!(SinkChoice::default(), SinkChoice::Default);
    }

    #[test]
    fn a_sink_has_one_place() {
        let place = |lines: &str| {
            let config = read(&format!("data_dir = \"d\"\n[sinks.visits]\n{lines}")).unwrap();
            let (name, sink) = config.sinks.first_key_value().unwrap();
            config.sink_place(name, sink)
        };
        assert!(matches!(
            place("size = 9"),
            SinkPlace::Results(DatabaseUrl::Sqlite(path)) if path.ends_with("d/results.db")
        ));
        assert!(matches!(
            place("url = \"postgres://h/d\"\ntable = \"t\"\ncolumns = [\"at timestamp\"]"),
            SinkPlace::Table(DatabaseUrl::Postgres(_), Table { name, columns })
                if name == "t" && columns.len() == 1
        ));
        assert!(matches!(
            place("kind = \"ndjson\""),
            SinkPlace::Ndjson(folder) if folder.ends_with("d/visits")
        ));
        assert!(matches!(
            place("kind = \"parquet\"\nfolder = \"/f\"\ncolumns = [\"at timestamp\"]"),
            SinkPlace::Parquet(folder, _) if folder.ends_with("/f")
        ));
    }

    #[test]
    fn wrong_sinks_say_what_would_be_right() {
        let sink = |lines: &str| format!("[sinks.visits]\n{lines}");
        let table = |columns: &str| sink(&format!("table = \"t\"\ncolumns = {columns}"));
        for (toml, expected) in [
            (sink("size = 0"), "sinks.visits.size: must be 1 to 10000"),
            (sink("concurrency = 2"), "one writer at a time"),
            (
                sink("url = \"postgres://h/d\"\nconcurrency = 17"),
                "1 to 16",
            ),
            (sink("timeout = \"61s\""), "at most 60s"),
            (sink("bytes = \"64\""), "512MiB"),
            (sink("kind = \"csv\""), "ndjson"),
            (sink("folder = \"f\""), "belongs to kind = \"ndjson\""),
            (
                sink("kind = \"ndjson\"\ntable = \"t\""),
                "belongs to kind = \"database\"",
            ),
            (
                sink("kind = \"ndjson\"\ncolumns = [\"a text\"]"),
                "belong to a table",
            ),
            (sink("kind = \"parquet\""), "columns: must be 1 to 250"),
            (sink("table = \"t\""), "columns: must be 1 to 250"),
            (sink("columns = [\"a text\"]"), "belong to a table"),
            (table("[\"a text\", \"A int\"]"), "twice"),
            (table("[\"a varchar\"]"), "use one of text"),
            (
                sink("table = \"a b\"\ncolumns = [\"a text\"]"),
                "letters, digits",
            ),
            (
                sink("table = \"Results\"\ncolumns = [\"a text\"]"),
                "are taken",
            ),
            (
                "[sink]\ntable = \"t\"\ncolumns = [\"a text\"]".into(),
                "[sinks.NAME]",
            ),
            ("[sinks.A]\nsize = 1".into(), "start with a letter"),
            (format!("{NOOP}sink = \"nope\""), "not configured"),
            (format!("{NOOP}sink = 1"), "the name of a sink"),
            (
                format!("[pipelines.\"gsc.slice\"]\nsink = \"visits\"\n{}", sink("")),
                "cannot be chosen",
            ),
        ] {
            let problem = problem(&toml);
            assert!(problem.contains(expected), "{toml}: {problem}");
        }
    }

    #[test]
    fn groups_that_can_never_be_full_are_refused_with_the_inequality() {
        let check = |lines: &str| {
            let worker = "[worker]\nslots = 16\nlook_ahead = 32\n";
            let config = read(&format!("{worker}[sinks.visits]\n{lines}")).unwrap();
            config.check_group(&SinkName::new("visits").unwrap())
        };
        assert!(check("size = 100").is_ok());
        assert!(check("size = 48\ntimeout = \"1s\"").is_ok());
        let error = check("size = 49\ntimeout = \"1s\"")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("49 > worker.slots + worker.look_ahead = 48"),
            "{error}"
        );
    }
}
