//! Everything that can be set, in `emu.toml`, in code, or at run time through `POST /__emu/config`.
//!
//! All keys are optional and flat, so that one JSON object changes one number. An unknown key is an error.

mod parts;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use parts::{Latency, OauthClient, Permission, ServiceAccount, Site, Spelling, TieMode};

use crate::fault::Rule;
use crate::generator::{EmptyRange, MAX_DAYS, Options, Profile};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The text is no TOML, or a key is unknown or has a value of the wrong type.
    #[error("{0}")]
    Parse(#[from] Box<toml::de::Error>),
    /// A change sent to the running emulator has an unknown key or a wrong value.
    #[error("{0}")]
    Patch(#[from] serde_json::Error),
    /// A value that cannot work.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The emulator's settings. The defaults are those of a small, healthy Search Console.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches that have nothing to do with each other"
)]
pub struct Config {
    /// Where to listen; loopback only, because nothing here is protected. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Under which URL clients reach it, such as `http://emulator:8500` from other containers; otherwise where it
    /// listens. Whoever sets it has a closed network, so that it may listen on any address.
    pub public_url: Option<String>,

    /// The virtual time at start: it decides today's Pacific date, ages, retention and metadata.
    pub now: Timestamp,
    /// Whether the virtual clock runs, at the speed of the real one. Otherwise only admin calls move it.
    pub clock_runs: bool,

    /// Another seed, other content.
    pub seed: u64,
    /// The size of every site that does not name its own.
    pub profile: Profile,
    /// Age in days from which a day is final.
    pub final_lag: i32,
    /// Age in days of the day that `first_incomplete_date` names.
    pub first_incomplete_age: i32,
    /// How metadata keys are spelled.
    pub spelling: Spelling,
    /// The most rows of a day, type and grouping that can be read.
    pub row_cap: usize,
    /// How many days back rows are kept; at most 511.
    pub retention_days: i32,
    /// Days without any data.
    pub empty: Vec<EmptyRange>,
    /// The order of rows with equal clicks.
    pub tie_mode: TieMode,
    /// Whether texts are chosen to break careless clients.
    pub nasty_text: bool,

    /// The properties.
    pub sites: Vec<Site>,
    /// The service accounts whose signatures are accepted.
    pub service_accounts: Vec<ServiceAccount>,
    /// The OAuth clients whose users may refresh.
    pub oauth_clients: Vec<OauthClient>,
    /// Accept every service account and any signature.
    pub insecure_accept: bool,
    /// How long access tokens live, in real seconds. 60 forces refreshes in the middle of a job.
    pub token_life_s: u64,

    /// Queries per site in 60 s; 0 is no limit, as for all limits here.
    pub qpm_site: u64,
    /// Queries per user in 60 s.
    pub qpm_user: u64,
    /// Queries of the whole project in 60 s.
    pub qpm_project: u64,
    /// Queries per site in 1 s: the undocumented burst cap.
    pub qps_burst: u64,
    /// Queries of the whole project in a day.
    pub qpd_project: u64,
    /// Limits the project like a new one: 60 queries in 60 s.
    pub new_project: bool,
    /// Load units per site in 600 s.
    pub load_short: u64,
    /// Load units per site in a day.
    pub load_long: u64,
    /// Whether refused queries use up quota too, so that a hammering client never recovers.
    pub punish: bool,

    /// What goes wrong.
    pub faults: Vec<Rule>,
    /// Another seed, other victims of rules with a probability, and other latencies.
    pub fault_seed: u64,
    /// How long answers take.
    pub latency: Latency,

    /// Memory for prepared rows and pages. Too little makes every page be made again.
    pub cache_mb: u64,
}

impl Default for Config {
    fn default() -> Self {
        let content = Options::default();
        let site = |url: &str, permission| Site {
            url: url.to_owned(),
            permission,
            profile: None,
            users: Vec::new(),
        };
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            public_url: None,
            // 2026-03-01T18:00:00Z, the clock of the generator's golden vectors.
            now: Timestamp::constant(1_772_388_000, 0),
            clock_runs: false,
            seed: content.seed,
            profile: content.profile,
            final_lag: content.final_lag,
            first_incomplete_age: 1,
            spelling: Spelling::Snake,
            row_cap: content.row_cap,
            retention_days: content.retention_days,
            empty: content.empty,
            tie_mode: TieMode::Stable,
            nasty_text: content.nasty_text,
            sites: vec![
                site("sc-domain:alpha.example", Permission::SiteOwner),
                site("https://beta.example/", Permission::SiteFullUser),
                site(
                    "https://gamma.example/shop/",
                    Permission::SiteRestrictedUser,
                ),
                site(
                    "https://unverified.example/",
                    Permission::SiteUnverifiedUser,
                ),
            ],
            service_accounts: Vec::new(),
            oauth_clients: vec![OauthClient::default()],
            insecure_accept: false,
            token_life_s: 3599,
            qpm_site: 1200,
            qpm_user: 1200,
            qpm_project: 40_000,
            qps_burst: 20,
            qpd_project: 30_000_000,
            new_project: false,
            load_short: 40_000,
            load_long: 1_500_000,
            punish: false,
            faults: Vec::new(),
            fault_seed: 42,
            latency: Latency::Off,
            cache_mb: 256,
        }
    }
}

impl Config {
    /// Reads a TOML file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_toml(&text)
    }

    /// Reads TOML text.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(Box::new)?;
        config.check()
    }

    /// No quotas at all, for tests and benchmarks of other things.
    #[must_use]
    pub fn unlimited(self) -> Self {
        Self {
            qpm_site: 0,
            qpm_user: 0,
            qpm_project: 0,
            qps_burst: 0,
            qpd_project: 0,
            new_project: false,
            load_short: 0,
            load_long: 0,
            ..self
        }
    }

    /// This configuration with the keys of `change` in place of its own.
    pub(crate) fn patched(
        &self,
        change: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, ConfigError> {
        let mut all = serde_json::to_value(self)?;
        if let Some(keys) = all.as_object_mut() {
            keys.extend(change);
        }
        serde_json::from_value::<Self>(all)?.check()
    }

    pub(crate) fn check(self) -> Result<Self, ConfigError> {
        let refuse = |key, reason: &str| {
            Err(ConfigError::Value {
                key,
                reason: reason.to_owned(),
            })
        };
        if self.public_url.is_none() && !self.listen.ip().is_loopback() {
            return refuse(
                "listen",
                "only loopback addresses, nothing here is protected; in a network of its own, set public_url",
            );
        }
        if !(1..=MAX_DAYS).contains(&self.retention_days) {
            return refuse("retention_days", "must be 1 to 511");
        }
        if !(0..=self.retention_days).contains(&self.final_lag) {
            return refuse("final_lag", "must be 0 to retention_days");
        }
        if let Some(problem) = self.faults.iter().find_map(Rule::problem) {
            return refuse("faults", &problem);
        }
        if let Latency::Lognormal {
            p50_ms,
            p99_ms,
            per_1000_rows_ms,
        } = self.latency
            && !(p50_ms > 0.0 && p99_ms >= p50_ms && per_1000_rows_ms >= 0.0)
        {
            return refuse(
                "latency",
                "needs 0 < p50_ms <= p99_ms and per_1000_rows_ms >= 0",
            );
        }
        Ok(self)
    }

    /// What decides the content of one site.
    pub(crate) fn content(&self, profile: Option<Profile>) -> Options {
        Options {
            seed: self.seed,
            profile: profile.unwrap_or(self.profile),
            final_lag: self.final_lag,
            retention_days: self.retention_days,
            row_cap: self.row_cap,
            empty: self.empty.clone(),
            nasty_text: self.nasty_text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_written_down_and_read_again() {
        let text = toml::to_string(&Config::default()).unwrap();
        let read = Config::from_toml(&text).unwrap();
        assert_eq!(read.now.to_string(), "2026-03-01T18:00:00Z");
        assert_eq!(read.sites.len(), 4);
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let mut example = Config::from_toml(include_str!("../../emu.toml")).unwrap();
        assert_eq!(example.faults.len(), 1);
        example.faults.clear();
        let text = |config: &Config| toml::to_string(config).unwrap();
        assert_eq!(text(&example), text(&Config::default()));
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused() {
        for text in [
            "qpm = 1",
            "listen = \"0.0.0.0:80\"",
            "retention_days = 600",
            "[[faults]]\np = 0.1",
        ] {
            assert!(Config::from_toml(text).is_err(), "{text}");
        }
    }

    #[test]
    fn who_names_a_public_url_may_listen_to_others() {
        let text = "listen = \"0.0.0.0:8500\"\npublic_url = \"http://emulator:8500\"";
        let config = Config::from_toml(text).unwrap();
        assert_eq!(config.public_url.as_deref(), Some("http://emulator:8500"));
    }

    #[test]
    fn a_patch_replaces_single_keys() {
        let change = serde_json::json!({"qps_burst": 8})
            .as_object()
            .cloned()
            .unwrap();
        let patched = Config::default().patched(change).unwrap();
        assert_eq!((patched.qps_burst, patched.qpm_site), (8, 1200));
        let unknown = serde_json::json!({"qps": 8}).as_object().cloned().unwrap();
        assert!(Config::default().patched(unknown).is_err());
    }
}
