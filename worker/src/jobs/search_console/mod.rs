//! The built-in main job: keeps Google's Search Analytics rows in the sink.
//!
//! [`mod@plan`] finds out what is missing and asks for [`mod@slice`] batches; each of those fetches one day.
//! Both call the API through `api`, which meets every fault; `rate` knows what limits a call falls under.

pub mod plan;
pub mod slice;
pub mod slice_rows;
pub mod store;

mod api;
mod calendar;
mod classify;
mod client;
mod credentials;
mod page;
mod rate;
mod token;

use std::sync::Arc;

use shared::config::SearchConsoleConfig;

pub use credentials::CredentialsError;

use crate::handler::HandlerError;
use api::Api;
use calendar::Calendar;
use client::Client;
use credentials::Credentials;
use plan::PlanHandler;
use rate::Limits;
use slice::SliceHandler;
use store::SearchAnalyticsStore;
use token::TokenSource;

/// Why the job cannot be set up: the configuration is wrong.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The credentials file is of no use.
    #[error("search_console.credentials: {0}")]
    Credentials(#[from] CredentialsError),
    /// No HTTP client could be made.
    #[error("no HTTP client could be made: {0}")]
    Http(#[from] reqwest::Error),
}

/// The job: two handlers that share credentials and connections.
pub struct Job {
    shared: Arc<Shared>,
}

/// What both handlers need.
pub(crate) struct Shared {
    config: SearchConsoleConfig,
    calendar: Calendar,
    /// `None` without credentials: the worker may still serve other pipelines.
    api: Option<Api>,
}

impl Job {
    /// Reads the credentials, if some are configured. Calls nobody yet.
    pub fn new(
        config: &SearchConsoleConfig,
        store: Arc<dyn SearchAnalyticsStore>,
    ) -> Result<Self, JobError> {
        let calendar = Calendar::new(config.now);
        let api = match &config.credentials {
            None => None,
            Some(path) => {
                let credentials = Credentials::read(path)?;
                let http = client::http()?;
                Some(Api {
                    client: Client::new(http.clone(), config.endpoint.clone()),
                    limits: Limits::new(credentials.counted_as()),
                    tokens: TokenSource::new(credentials, http),
                    calendar: calendar.clone(),
                    store,
                    sites: tokio::sync::Mutex::default(),
                    noted: std::sync::Mutex::default(),
                })
            }
        };
        let shared = Shared {
            config: config.clone(),
            calendar,
            api,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The handler of `gsc.plan`.
    #[must_use]
    pub fn plan(&self) -> PlanHandler {
        PlanHandler {
            shared: Arc::clone(&self.shared),
        }
    }

    /// The handler of `gsc.slice`.
    #[must_use]
    pub fn slice(&self) -> SliceHandler {
        SliceHandler {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Shared {
    fn api(&self) -> Result<&Api, HandlerError> {
        self.api.as_ref().ok_or_else(|| {
            HandlerError::fail(
                "credentials_missing",
                "this worker has no Google credentials: set search_console.credentials \
                 (TIDEGATE_SEARCH_CONSOLE__CREDENTIALS) to a service-account or authorized-user JSON file",
            )
        })
    }
}
