//! The emulator as a value: started on a free port, asked and told things, stopped.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp, Zoned};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::auth::TestAccount;
use crate::config::{Config, ConfigError, ServiceAccount};
use crate::generator::{RowSet, Selection, rows};
use crate::http;
use crate::stats::Stats;

/// Why an emulator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port cannot be had.
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
}

/// Starts emulators.
#[derive(Debug)]
pub struct Emulator;

/// A running emulator; it stops when dropped.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    url: Arc<str>,
    app: Arc<App>,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
}

impl Emulator {
    /// Binds and serves, on the current Tokio runtime.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        let config = config.check()?;
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let url: Arc<str> = match &config.public_url {
            Some(url) => url.trim_end_matches('/').into(),
            None => http::url(address).into(),
        };
        let app = Arc::new(App::new(config));
        let stop = CancellationToken::new();
        let serving = http::run(Arc::clone(&app), listener, Arc::clone(&url), stop.clone());
        let server = tokio::spawn(serving);
        Ok(Running {
            address,
            url,
            app,
            stop,
            server: Some(server),
        })
    }
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or the public URL; without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The `token_uri` of credentials for this emulator.
    #[must_use]
    pub fn token_uri(&self) -> String {
        format!("{}/token", self.url())
    }

    /// A valid access token of `user`, for tests that are not about tokens.
    #[must_use]
    pub fn issue_token(&self, user: &str) -> String {
        self.app.issue_token(user)
    }

    /// Makes the emulator accept this service account.
    pub fn register(&self, account: &TestAccount) -> Result<(), ConfigError> {
        let mut accounts: Vec<ServiceAccount> = self.app.config().service_accounts.clone();
        accounts.push(account.registration());
        self.configure(serde_json::json!({ "service_accounts": accounts }))
    }

    /// Replaces single configuration keys, like `POST /__emu/config`.
    pub fn configure(&self, change: Value) -> Result<(), ConfigError> {
        let refuse = |reason: &str| ConfigError::Value {
            key: "change",
            reason: reason.to_owned(),
        };
        match change {
            Value::Object(change) => self.app.patch(change),
            _ => Err(refuse("must be an object")),
        }
    }

    /// The virtual time, as Pacific time.
    #[must_use]
    pub fn now(&self) -> Zoned {
        self.app.clock.now()
    }

    /// Moves the virtual clock to a time.
    pub fn set_now(&self, now: Timestamp) {
        self.app.clock.set(now);
    }

    /// Moves the virtual clock on.
    pub fn advance(&self, by: SignedDuration) {
        self.app.clock.advance(by);
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.app.stats().clone()
    }

    /// Counters and quota windows start again.
    pub fn reset(&self) {
        self.app.reset();
    }

    /// The rows that the API serves now, cap included; without tokens, quotas, faults or HTTP.
    #[must_use]
    pub fn truth(&self, selection: &Selection) -> RowSet {
        let config = self.app.config();
        let profile = config
            .sites
            .iter()
            .find(|site| site.url == selection.site)
            .and_then(|site| site.profile);
        rows(&config.content(profile), selection, &self.now())
    }

    /// Ends all connections and waits until they are gone.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(server) = self.server.take() {
            // A server that panicked is stopped as well.
            let _ = server.await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
