//! `[webhooks]`: who may be told that a run has finished, and how hard it is tried.

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretSlice};
use serde::Deserialize;
use url::Host;

use super::list::list_or_commas;
use super::{ConfigError, Span};
use crate::backoff::Backoff;

/// Completion webhooks. `TIDEGATE_WEBHOOKS__…`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhooksConfig {
    /// Hosts that may be called: `hooks.example.com`, or `*.example.com` for every host below it (and not
    /// itself). Comma-separated in the environment. Default: none, so that a run with a webhook is refused.
    #[serde(deserialize_with = "list_or_commas")]
    pub allow: Vec<HostPattern>,
    /// Whether allowed hosts may have private addresses (loopback, 10.0.0.0/8, link-local, …). Default
    /// `false`: a name that leads into the coordinator's own network is not called.
    pub allow_private: bool,
    /// How long one call may take, connecting included (up to 1 min). Default 10 s.
    pub timeout: Span,
    /// Calls after which a webhook is given up (1–100). Default 12: with the default delays, that takes
    /// two hours and a half at most.
    pub max_attempts: u32,
    /// Upper bound of the first delay after a call that failed; it doubles with each. Default 5 s.
    pub retry_base: Span,
    /// Upper bound of all delays, also of those that a receiver asks for. Default 1 h.
    pub retry_cap: Span,
    /// Calls at a time (1–1,000). Default 64.
    pub concurrency: u32,
    /// Calls of one host at a time, so that a slow one holds up nobody else. Default 4.
    pub concurrency_per_host: u32,
    /// Signs every call, as standardwebhooks.com says: `whsec_` and 24 to 64 bytes in base64. Default: none,
    /// and calls carry no signature.
    pub secret: Option<WebhookSecret>,
    /// The same from a file, such as a mounted secret. Not together with `secret`.
    pub secret_file: Option<PathBuf>,
}

/// The key that signs calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct WebhookSecret(SecretSlice<u8>);

/// A host that may be called, or all hosts below a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// Just this one.
    Exact(Host),
    /// Those whose name ends with a dot and this.
    Below(String),
}

impl Default for WebhooksConfig {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            allow_private: false,
            timeout: Span::seconds(10),
            max_attempts: 12,
            retry_base: Span::seconds(5),
            retry_cap: Span::seconds(60 * 60),
            concurrency: 64,
            concurrency_per_host: 4,
            secret: None,
            secret_file: None,
        }
    }
}

impl WebhooksConfig {
    const MAX_TIMEOUT: Span = Span::seconds(60);
    const MAX_ATTEMPTS: u32 = 100;
    const MAX_CONCURRENCY: u32 = 1_000;

    /// The delays between calls that failed.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.retry_base.get(), self.retry_cap.get())
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::wrong(format!("webhooks.{key}"), problem))
        };
        if self.timeout > Self::MAX_TIMEOUT {
            return wrong(
                "timeout",
                format!("must be at most {}, is {}", Self::MAX_TIMEOUT, self.timeout),
            );
        }
        if self.max_attempts == 0 || self.max_attempts > Self::MAX_ATTEMPTS {
            let problem = format!(
                "must be 1 to {}, is {}",
                Self::MAX_ATTEMPTS,
                self.max_attempts
            );
            return wrong("max_attempts", problem);
        }
        if self.retry_base > self.retry_cap {
            let problem = format!(
                "must be at most retry_cap: {} > {}",
                self.retry_base, self.retry_cap
            );
            return wrong("retry_base", problem);
        }
        let most = Self::MAX_CONCURRENCY;
        if self.concurrency_per_host == 0
            || self.concurrency_per_host > self.concurrency
            || self.concurrency > most
        {
            let problem = format!(
                "must satisfy 1 <= concurrency_per_host <= concurrency <= {most}: {} and {}",
                self.concurrency_per_host, self.concurrency
            );
            return wrong("concurrency", problem);
        }
        Ok(())
    }
}

impl WebhookSecret {
    const PREFIX: &str = "whsec_";

    /// The key's bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

impl TryFrom<String> for WebhookSecret {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let key = text
            .trim()
            .strip_prefix(Self::PREFIX)
            .and_then(|encoded| BASE64_STANDARD.decode(encoded).ok())
            .filter(|key| (24..=64).contains(&key.len()));
        // What was written is a secret, even when it is wrong.
        let key = key.ok_or(
            "must be whsec_ and 24 to 64 bytes in base64, such as from `openssl rand -base64 32`",
        )?;
        Ok(Self(key.into()))
    }
}

impl HostPattern {
    /// Whether it means this host.
    #[must_use]
    pub fn matches(&self, host: &Host<&str>) -> bool {
        match self {
            Self::Exact(exact) => exact == &host.to_owned(),
            Self::Below(domain) => matches!(host, Host::Domain(name)
                if name.strip_suffix(domain.as_str()).is_some_and(|below| below.len() > 1 && below.ends_with('.'))),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let below = text.trim().strip_prefix("*.");
        match (below, Host::parse(below.unwrap_or(text.trim()))) {
            (None, Ok(host)) if !text.contains('*') => Ok(Self::Exact(host)),
            (Some(below), Ok(Host::Domain(domain))) if !below.contains('*') => {
                Ok(Self::Below(domain))
            }
            _ => Err(format!(
                "{text:?} is no host: write hooks.example.com or *.example.com, without scheme, port and path"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{problem, read};
    use super::*;

    fn allows(pattern: &str, url: &str) -> bool {
        let pattern = HostPattern::try_from(pattern.to_owned()).unwrap();
        pattern.matches(&url::Url::parse(url).unwrap().host().unwrap())
    }

    #[test]
    fn patterns_mean_one_host_or_those_below() {
        assert!(allows(
            "hooks.example.com",
            "https://HOOKS.example.com:8443/x"
        ));
        assert!(!allows("hooks.example.com", "https://a.hooks.example.com"));
        assert!(!allows(
            "hooks.example.com",
            "https://hooks.example.com.evil.example"
        ));
        assert!(allows("*.Example.com", "https://a.b.example.com"));
        for other in [
            "https://example.com",
            "https://.example.com",
            "https://badexample.com",
            "https://10.0.0.1",
        ] {
            assert!(!allows("*.example.com", other), "{other}");
        }
        assert!(
            allows("10.0.0.1", "http://0x0a000001"),
            "an address has many spellings"
        );
        assert!(allows("[::1]", "http://[0:0::1]:80"));
    }

    #[test]
    fn lists_come_from_the_file_and_from_one_variable() {
        let list = read("[webhooks]\nallow = [\"a.example\", \"*.b.example\"]").unwrap();
        let text = read("[webhooks]\nallow = \"a.example, *.b.example,\"").unwrap();
        assert_eq!(list.webhooks.allow, text.webhooks.allow);
        assert_eq!(list.webhooks.allow.len(), 2);
    }

    #[test]
    fn wrong_values_say_what_would_be_right() {
        let cases = [
            ("allow = [\"*\"]", "*.example.com"),
            ("allow = [\"https://a.example/\"]", "without scheme"),
            ("allow = [\"*.10.0.0.1\"]", "*.example.com"),
            ("timeout = \"2m\"", "at most"),
            ("max_attempts = 0", "1 to 100"),
            ("retry_base = \"2h\"", "retry_cap"),
            ("concurrency = 3", "concurrency_per_host <= concurrency"),
            ("secret = \"hunter2\"", "base64"),
        ];
        for (toml, expected) in cases {
            let problem = problem(&format!("[webhooks]\n{toml}"));
            assert!(problem.contains(expected), "{toml}: {problem}");
            assert!(problem.contains("webhooks"), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn the_secret_does_not_print() {
        let secret = format!("whsec_{}", BASE64_STANDARD.encode([7; 24]));
        let config = read(&format!("[webhooks]\nsecret = \"{secret}\"")).unwrap();
        let key = config.webhooks.secret.as_ref().unwrap();
        assert_eq!(key.expose(), [7; 24]);
        let printed = format!("{config:?}");
        assert!(
            !printed.contains(&secret) && !printed.contains("7, 7"),
            "{printed}"
        );
    }
}
