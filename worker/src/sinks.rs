//! Opens the sinks of a worker, once at its start: the default one, and those that its pipelines name.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::config::{Config, ConfigError, DatabaseUrl, SinkChoice, SinkConfig, SinkPlace};
use shared::name::SinkName;
use tokio_util::sync::CancellationToken;

use crate::collect::{AnyJson, RowForm};
use crate::cursor::Cursors;
use crate::jobs::search_console::store::SearchAnalyticsStore;
use crate::sink::entrance::Entrance;
use crate::sink::files::{FilesSink, Format, Markers};
use crate::sink::postgres::{PostgresSink, PostgresTable};
use crate::sink::sqlite::{SqliteSink, SqliteTable};
use crate::sink::table::Shape;
use crate::sink::{Grouping, Sink, SinkError};

/// Why a sink cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened.
    #[error("sink {address}: {problem}")]
    Sink {
        /// Which database or folder.
        address: String,
        /// Why not.
        problem: SinkError,
    },
    /// It does not fit this worker.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
}

impl OpenError {
    /// Whether it may work later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Sink {
                problem: SinkError::Unavailable(_),
                ..
            }
        )
    }
}

/// The sinks of a worker.
pub struct Sinks {
    default: Arc<Entrance>,
    named: BTreeMap<SinkName, Arc<Entrance>>,
}

/// The default sink: the Search Console job's tables, the markers of files and cursors are there too.
pub struct DefaultSink {
    sink: Arc<dyn Sink>,
    store: Arc<dyn SearchAnalyticsStore>,
    markers: Arc<dyn Markers>,
    cursors: Arc<dyn Cursors>,
    hurry: CancellationToken,
}

impl Sinks {
    /// The sink that a pipeline chose; none if its rows are not stored.
    #[must_use]
    pub fn get(&self, choice: &SinkChoice) -> Option<&Entrance> {
        match choice {
            SinkChoice::Default => Some(&self.default),
            SinkChoice::None => None,
            SinkChoice::Named(name) => self.named.get(name).map(|sink| &**sink),
        }
    }

    /// The form in which a pipeline's rows are collected.
    #[must_use]
    pub fn form(&self, choice: &SinkChoice) -> Arc<dyn RowForm> {
        match self.get(choice) {
            Some(sink) => sink.form(),
            None => Arc::new(AnyJson),
        }
    }

    /// Returns once all of them answer.
    pub async fn until_all_answer(&self) {
        for sink in self.named.values().chain([&self.default]) {
            sink.until_it_answers().await;
        }
    }
}

impl DefaultSink {
    /// Opens it. `hurry` is cancelled when nothing may wait for company any more.
    pub async fn open(config: &Config, hurry: CancellationToken) -> Result<Self, OpenError> {
        let url = config.sink_url();
        let failed = |problem| OpenError::Sink {
            address: url.address(),
            problem,
        };
        let grouping = Grouping::from(&config.sink);
        Ok(match &url {
            DatabaseUrl::Sqlite(path) => {
                let sink = SqliteSink::open(path, grouping, hurry.clone()).await;
                Self::of(Arc::new(sink.map_err(failed)?), hurry)
            }
            DatabaseUrl::Postgres(url) => {
                let sink = PostgresSink::connect(url, grouping, hurry.clone()).await;
                Self::of(Arc::new(sink.map_err(failed)?), hurry)
            }
        })
    }

    fn of<S: Sink + SearchAnalyticsStore + Markers + Cursors>(
        sink: Arc<S>,
        hurry: CancellationToken,
    ) -> Self {
        Self {
            sink: Arc::clone(&sink) as _,
            store: Arc::clone(&sink) as _,
            markers: Arc::clone(&sink) as _,
            cursors: sink,
            hurry,
        }
    }

    /// What the Search Console job reads and notes.
    #[must_use]
    pub fn store(&self) -> Arc<dyn SearchAnalyticsStore> {
        Arc::clone(&self.store)
    }

    /// Where handlers note how far they have come.
    #[must_use]
    pub fn cursors(&self) -> Arc<dyn Cursors> {
        Arc::clone(&self.cursors)
    }

    /// Opens those as well that the pipelines of this worker name.
    pub async fn and_others(self, config: &Config) -> Result<Sinks, OpenError> {
        let served = config.served_pipelines();
        let is_used = |name: &SinkName| {
            let choice = SinkChoice::Named(name.clone());
            served.values().any(|pipeline| pipeline.sink == choice)
        };
        let mut named = BTreeMap::new();
        for (name, settings) in config.sinks.iter().filter(|(name, _)| is_used(name)) {
            config.check_group(name)?;
            let place = config.sink_place(name, settings);
            let sink = self.open_named(&place, settings).await;
            let sink = sink.map_err(|problem| OpenError::Sink {
                address: format!("{name} ({})", place.address()),
                problem,
            })?;
            let entrance = Entrance::new(sink, settings.bytes.bytes());
            named.insert(name.clone(), Arc::new(entrance));
        }
        let bytes = config.sink.bytes.bytes();
        Ok(Sinks {
            default: Arc::new(Entrance::new(self.sink, bytes)),
            named,
        })
    }

    async fn open_named(
        &self,
        place: &SinkPlace,
        settings: &SinkConfig,
    ) -> Result<Arc<dyn Sink>, SinkError> {
        let (grouping, hurry) = (Grouping::from(settings), self.hurry.clone());
        let files = async |folder, format| {
            let (markers, grouping, hurry) =
                (Arc::clone(&self.markers), grouping.clone(), hurry.clone());
            FilesSink::open(folder, format, markers, grouping, hurry).await
        };
        Ok(match place {
            SinkPlace::Results(DatabaseUrl::Sqlite(path)) => {
                Arc::new(SqliteSink::open(path, grouping, hurry).await?)
            }
            SinkPlace::Results(DatabaseUrl::Postgres(url)) => {
                Arc::new(PostgresSink::connect(url, grouping, hurry).await?)
            }
            SinkPlace::Table(DatabaseUrl::Sqlite(path), table) => {
                Arc::new(SqliteTable::open(path, table.clone(), grouping, hurry).await?)
            }
            SinkPlace::Table(DatabaseUrl::Postgres(url), table) => {
                Arc::new(PostgresTable::connect(url, table.clone(), grouping, hurry).await?)
            }
            SinkPlace::Ndjson(folder) => Arc::new(files(folder, Format::Ndjson).await?),
            SinkPlace::Parquet(folder, columns) => {
                let shape = Arc::new(Shape::new(columns.clone()));
                Arc::new(files(folder, Format::Parquet(shape)).await?)
            }
        })
    }
}
