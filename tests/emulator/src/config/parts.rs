//! The values of the configuration that are more than a number.

use serde::{Deserialize, Serialize};

use crate::generator::Profile;

/// Spelling of the metadata keys; both have been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spelling {
    /// `first_incomplete_date`.
    Snake,
    /// `firstIncompleteDate`.
    Camel,
}

/// The order of rows with equal clicks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TieMode {
    /// By impressions and key.
    Stable,
    /// Random in every answer, which breaks paging by offset on purpose.
    ShufflePerRequest,
}

/// What the caller may do with a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Permission {
    /// Everything.
    SiteOwner,
    /// Reads everything.
    SiteFullUser,
    /// Reads data.
    SiteRestrictedUser,
    /// Is listed, but reads nothing.
    SiteUnverifiedUser,
}

/// A property.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// `sc-domain:example.com`, or an address with a trailing slash.
    pub url: String,
    /// What callers may do.
    pub permission: Permission,
    /// Its size, when it is not that of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// Who is a user of the property; everybody when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
}

/// A service account that may ask for tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccount {
    /// Its address, the `iss` of its assertions.
    pub email: String,
    /// Its RSA public key in PEM (`BEGIN PUBLIC KEY` or `BEGIN RSA PUBLIC KEY`).
    pub public_key: String,
}

/// An OAuth client whose users may refresh their tokens. Any refresh token works but `revoked`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OauthClient {
    /// Its id.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
}

impl Default for OauthClient {
    fn default() -> Self {
        Self {
            client_id: "emulator.apps.googleusercontent.com".to_owned(),
            client_secret: "emulator-secret".to_owned(),
        }
    }
}

/// How long answers take; immediate by default.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode", deny_unknown_fields)]
pub enum Latency {
    /// As fast as possible.
    #[default]
    Off,
    /// Always the same.
    Fixed {
        /// Milliseconds.
        ms: u64,
    },
    /// Seeded and log-normal, like the real service.
    Lognormal {
        /// The median in milliseconds.
        #[serde(default = "default_p50_ms")]
        p50_ms: f64,
        /// One answer in a hundred takes longer than this many milliseconds.
        #[serde(default = "default_p99_ms")]
        p99_ms: f64,
        /// Milliseconds more for every thousand rows.
        #[serde(default = "default_per_1000_rows_ms")]
        per_1000_rows_ms: f64,
    },
}

fn default_p50_ms() -> f64 {
    350.0
}

fn default_p99_ms() -> f64 {
    2500.0
}

fn default_per_1000_rows_ms() -> f64 {
    20.0
}
