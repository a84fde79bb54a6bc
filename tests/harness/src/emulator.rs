//! The Search Console emulator as a process, and its admin calls.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::civil::Date;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::search_console::{DimensionSet, SearchType};
use url::Url;

use crate::processes::{self, Environment, Service};
use crate::scratch::Scratch;

const START_LIMIT: Duration = Duration::from_secs(30);
/// No quota gets in the way of tests about other things.
pub const NO_QUOTAS: &str = "qpm_site = 0\nqpm_user = 0\nqpm_project = 0\nqps_burst = 0\nqpd_project = 0\n\
                             load_short = 0\nload_long = 0\n";

/// What Tidegate is told about a service without quotas: it needs no sparing, and a test has no minute to wait
/// for a rate to climb.
pub const NO_LIMITS: &str = r#"
[limits."gsc.site"]
rate = "1000/s"
start = "1000/s"
[limits."gsc.user"]
rate = "10000/s"
[limits."gsc.project"]
rate = "10000/s"
"#;

/// A running emulator.
#[derive(Debug)]
pub struct Emulator {
    /// Asks and tells it things.
    pub admin: Admin,
    /// The key file of a service account that it accepts.
    pub credentials: PathBuf,
    _service: Service,
}

impl Emulator {
    /// Starts one with this configuration.
    pub fn start(scratch: &Scratch, config: &str) -> Result<Self> {
        let file = scratch.path().join("emulator.toml");
        std::fs::write(&file, config)?;
        let credentials = scratch.path().join("service-account.json");
        let mut command = processes::command(
            "search-console-emulator",
            scratch.path(),
            &Environment::new(),
        )?;
        command
            .arg("--config")
            .arg(file)
            .args(["--listen", "127.0.0.1:0"]);
        command.arg("--write-credentials").arg(&credentials);
        let mut service = Service::start_command(scratch, command, "emulator")?;
        let line = service.wait_for_line("listening on ", START_LIMIT)?;
        let url = line.rsplit(' ').next().context("an address at the end")?;
        Ok(Self {
            admin: Admin::new(url)?,
            credentials,
            _service: service,
        })
    }

    /// Where it is, for `TIDEGATE_SEARCH_CONSOLE__ENDPOINT`.
    #[must_use]
    pub fn url(&self) -> &str {
        self.admin.url.as_str()
    }
}

/// Speaks to an emulator's `/__emu/` endpoints.
#[derive(Debug, Clone)]
pub struct Admin {
    url: Url,
    http: reqwest::Client,
}

/// A row as the API would serve it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TrueRow {
    /// The values of the dimensions, in order.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Clicks.
    pub clicks: u64,
    /// Impressions.
    pub impressions: u64,
    /// Clicks by impressions.
    pub ctr: f64,
    /// Average position; Discover and Google News have none.
    #[serde(default)]
    pub position: Option<f64>,
}

impl Admin {
    /// For the emulator at this address.
    pub fn new(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()?;
        Ok(Self {
            url: Url::parse(url)?,
            http,
        })
    }

    /// What happened so far.
    pub async fn stats(&self) -> Result<Value> {
        self.get("stats", &[])
            .await?
            .json()
            .await
            .context("reading the statistics")
    }

    /// Changes single keys of its configuration.
    pub async fn configure(&self, change: Value) -> Result<()> {
        self.post("config", change).await.map(drop)
    }

    /// Moves its clock on and returns the Pacific day that it is then.
    pub async fn advance(&self, days: u32) -> Result<Date> {
        let now = self
            .post("advance", json!({ "seconds": i64::from(days) * 86_400 }))
            .await?;
        now["pacificDate"]
            .as_str()
            .context("no pacificDate")?
            .parse()
            .context("its date")
    }

    /// Its virtual time, for `TIDEGATE_SEARCH_CONSOLE__NOW`.
    pub async fn now(&self) -> Result<String> {
        let now = self.post("advance", json!({ "seconds": 0 })).await?;
        Ok(now["now"].as_str().context("no time")?.to_owned())
    }

    /// The rows of one slice.
    pub async fn truth(
        &self,
        property: &str,
        search_type: SearchType,
        dimensions: &DimensionSet,
        date: Date,
    ) -> Result<Vec<TrueRow>> {
        let query = [
            ("site", property.to_owned()),
            ("type", search_type.to_string()),
            ("dims", dimensions.to_string()),
            ("date", date.to_string()),
            ("dataState", "final".to_owned()),
        ];
        let text = self.get("truth", &query).await?.text().await?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("a row of the truth"))
            .collect()
    }

    async fn get(&self, what: &str, query: &[(&str, String)]) -> Result<reqwest::Response> {
        let url = self.url.join("/__emu/")?.join(what)?;
        checked(self.http.get(url).query(query).send().await?).await
    }

    async fn post(&self, what: &str, body: Value) -> Result<Value> {
        let url = self.url.join("/__emu/")?.join(what)?;
        let answer = checked(self.http.post(url).json(&body).send().await?).await?;
        answer.json().await.context("reading the emulator's answer")
    }
}

async fn checked(answer: reqwest::Response) -> Result<reqwest::Response> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let url = answer.url().to_string();
    bail!(
        "{url} answered {status}: {}",
        answer.text().await.unwrap_or_default()
    );
}

/// What a folder needs so that a worker finds the emulator: endpoint, credentials and clock.
#[must_use]
pub fn environment(emulator: &Emulator, now: &str) -> Environment {
    let credentials = |path: &Path| path.display().to_string();
    Environment::from([
        (
            "TIDEGATE_SEARCH_CONSOLE__ENDPOINT".to_owned(),
            emulator.url().to_owned(),
        ),
        (
            "TIDEGATE_SEARCH_CONSOLE__CREDENTIALS".to_owned(),
            credentials(&emulator.credentials),
        ),
        ("TIDEGATE_SEARCH_CONSOLE__NOW".to_owned(), now.to_owned()),
    ])
}
