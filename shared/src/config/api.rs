//! `[api]`: the coordinator's HTTP API, who may use it, and how much it takes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::list::list_or_commas;
use super::{ConfigError, secret, tls};
use crate::tls::ServerTls;

/// The coordinator's HTTP API. `TIDEGATE_API__…`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Where to listen. Default `127.0.0.1:8420`. An address that others can reach needs a token.
    pub listen: SocketAddr,
    /// PEM file with the certificate, and intermediate ones after it, to speak HTTPS with, and nothing else. Default:
    /// none, and plain HTTP, for loopback or behind a proxy that ends TLS. Looked at with each connection: what is put
    /// in its place holds from then on.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its key, not encrypted.
    pub key_file: Option<PathBuf>,
    /// A token of the role `operate`; callers send it as `Authorization: Bearer …`. Default: none, which
    /// only loopback allows: whoever reaches it may do everything.
    pub token: Option<SecretString>,
    /// The same from a file, such as a mounted secret. Not together with `token`. Files with tokens are looked at with
    /// each request: what is put in their place holds from then on.
    pub token_file: Option<PathBuf>,
    /// More tokens, each with its role: `[[api.tokens]]`, `role = "submit"`, `token = …` or `file = …`.
    /// Several of a role may be valid at a time, so that one can be replaced while clients still use it.
    pub tokens: Vec<TokenConfig>,
    /// Names under which the API is reached, comma-separated in the environment. Default: none. A `Host`
    /// header with another name is refused when this is set or when listening on loopback, where
    /// `localhost` and loopback addresses are always allowed: otherwise any web page that its user opens
    /// could reach the API through a name of its own.
    #[serde(deserialize_with = "list_or_commas")]
    pub hosts: Vec<String>,
    /// Most connections at a time (1–65,536). Default 1,024. More wait until others are closed; too many
    /// use up the process's file descriptors.
    pub max_connections: u32,
    /// Most batches that may be pending over all runs; a submission that would pass it is refused whole
    /// with `queue_full`. Default 10,000,000: about 3 GB of ledger with small payloads.
    pub backlog_limit: u64,
}

/// One token of `[[api.tokens]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// What it allows.
    pub role: Role,
    /// The token itself.
    pub token: Option<SecretString>,
    /// Or the file that holds it.
    pub file: Option<PathBuf>,
}

/// What a caller may do. Each role may do everything that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at everything.
    Read,
    /// Submit runs.
    Submit,
    /// Cancel, pause, redrive, discard.
    Operate,
}

impl Role {
    /// The word that stands for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Operate => "operate",
        }
    }
}

/// A token that the API accepts.
#[derive(Debug, Clone)]
pub struct ApiToken {
    /// What it allows.
    pub role: Role,
    /// The token, without white space around it.
    pub secret: SecretString,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8420)),
            cert_file: None,
            key_file: None,
            token: None,
            token_file: None,
            tokens: Vec::new(),
            hosts: Vec::new(),
            max_connections: 1_024,
            backlog_limit: 10_000_000,
        }
    }
}

impl ApiConfig {
    const MAX_CONNECTIONS: u32 = 65_536;

    /// All tokens, those in files read now. None: everybody who reaches the API may do everything.
    pub fn all_tokens(&self) -> Result<Vec<ApiToken>, ConfigError> {
        let mut tokens = Vec::new();
        if self.token.is_some() || self.token_file.is_some() {
            let secret = one_of(
                "api.token",
                "api.token_file",
                self.token.as_ref(),
                self.token_file.as_deref(),
            )?;
            tokens.push(ApiToken {
                role: Role::Operate,
                secret,
            });
        }
        for (index, token) in self.tokens.iter().enumerate() {
            let secret = one_of(
                &format!("api.tokens.{index}.token"),
                &format!("api.tokens.{index}.file"),
                token.token.as_ref(),
                token.file.as_deref(),
            )?;
            tokens.push(ApiToken {
                role: token.role,
                secret,
            });
        }
        for (index, token) in tokens.iter().enumerate() {
            let same = |other: &&ApiToken| {
                other.secret.expose_secret() == token.secret.expose_secret()
                    && other.role != token.role
            };
            if let Some(other) = tokens[..index].iter().find(same) {
                let (one, two) = (other.role.as_str(), token.role.as_str());
                return Err(ConfigError::wrong(
                    "api.tokens",
                    format!("gives one token the roles {one} and {two}: use two tokens"),
                ));
            }
        }
        Ok(tokens)
    }

    /// The files that [`Self::all_tokens`] reads.
    #[must_use]
    pub fn token_files(&self) -> Vec<PathBuf> {
        let files = self.tokens.iter().map(|token| &token.file);
        let files = files.chain([&self.token_file]);
        files.flatten().cloned().collect()
    }

    /// What to speak TLS with; `None`: plain HTTP.
    pub fn tls(&self) -> Result<Option<ServerTls>, ConfigError> {
        tls::server("api", self.cert_file.as_ref(), self.key_file.as_ref())
    }

    /// Who can read along.
    pub(super) fn unprotected(&self) -> Option<String> {
        let is_plain = self.cert_file.is_none() && !self.listen.ip().is_loopback();
        let problem = || {
            format!(
                "{} takes tokens unencrypted: set api.cert_file and api.key_file, or listen on loopback behind a proxy",
                self.listen
            )
        };
        is_plain.then(problem)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.tls()?;
        let tokens = self.all_tokens()?;
        if tokens.is_empty() && !self.listen.ip().is_loopback() {
            let problem = format!(
                "{} can be reached by others: set api.token too, or listen on 127.0.0.1",
                self.listen
            );
            return Err(ConfigError::wrong("api.listen", problem));
        }
        if self.max_connections == 0 || self.max_connections > Self::MAX_CONNECTIONS {
            let problem = format!(
                "must be 1 to {}, is {}",
                Self::MAX_CONNECTIONS,
                self.max_connections
            );
            return Err(ConfigError::wrong("api.max_connections", problem));
        }
        let is_name = |host: &&String| {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte))
        };
        if let Some(odd) = self.hosts.iter().find(|host| !is_name(host)) {
            let problem = format!("{odd:?} is no host name: leave out scheme and path");
            return Err(ConfigError::wrong("api.hosts", problem));
        }
        Ok(())
    }
}

/// The one secret that a key and its file variant hold.
fn one_of(
    key: &str,
    file_key: &str,
    text: Option<&SecretString>,
    file: Option<&Path>,
) -> Result<SecretString, ConfigError> {
    match (text, file) {
        (Some(_), Some(_)) => {
            let problem = format!("is set together with {file_key}: leave one of them out");
            Err(ConfigError::wrong(key, problem))
        }
        (None, None) => {
            let problem = format!("is missing: set it, or {file_key}");
            Err(ConfigError::wrong(key, problem))
        }
        (Some(text), None) => secret::one_word(key, text),
        (None, Some(path)) => secret::from_file(file_key, path),
    }
}

#[cfg(test)]
mod tests {
    use figment::Figment;
    use figment::providers::{Format, Toml};

    use super::*;

    fn read(toml: &str) -> Result<Vec<(Role, String)>, String> {
        let config: ApiConfig = Figment::new()
            .merge(Toml::string(toml))
            .extract()
            .map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())?;
        let tokens = config.all_tokens().map_err(|e| e.to_string())?;
        let shown = |t: &ApiToken| (t.role, t.secret.expose_secret().to_owned());
        Ok(tokens.iter().map(shown).collect())
    }

    #[test]
    fn tokens_come_from_the_config_and_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "from-a-file\n").unwrap();
        let toml = format!(
            "listen = \"0.0.0.0:80\"\ntoken = \"all\"\ntokens = [{{ role = \"read\", token = \"look\" }}, \
             {{ role = \"submit\", file = {file:?} }}, {{ role = \"submit\", token = \"next\" }}]"
        );
        let expected = [
            (Role::Operate, "all"),
            (Role::Read, "look"),
            (Role::Submit, "from-a-file"),
            (Role::Submit, "next"),
        ];
        assert_eq!(
            read(&toml).unwrap(),
            expected.map(|(role, token)| (role, token.to_owned()))
        );
        assert!(Role::Read < Role::Submit && Role::Submit < Role::Operate);
    }

    #[test]
    fn tokens_that_cannot_work_are_refused_without_repeating_them() {
        let cases = [
            ("token = \"\"", "api.token: holds nothing usable"),
            ("token = \"se cret\"", "api.token: holds nothing usable"),
            (
                "token = \"secret\"\ntoken_file = \"/x\"",
                "together with api.token_file",
            ),
            (
                "token_file = \"/does/not/exist\"",
                "api.token_file: cannot read",
            ),
            (
                "tokens = [{ role = \"read\" }]",
                "api.tokens.0.token: is missing",
            ),
            (
                "tokens = [{ role = \"admin\", token = \"secret\" }]",
                "admin",
            ),
            (
                "token = \"secret\"\ntokens = [{ role = \"read\", token = \"secret\" }]",
                "the roles operate and read",
            ),
            ("listen = \"0.0.0.0:80\"", "api.listen"),
            ("max_connections = 0", "api.max_connections"),
            ("hosts = \"https://a.example/\"", "api.hosts"),
        ];
        for (toml, expected) in cases {
            let problem = read(toml).unwrap_err();
            assert!(problem.contains(expected), "{toml}: {problem}");
            assert!(
                !problem.contains("secret") && !problem.contains("se cret"),
                "{problem}"
            );
        }
    }
}
