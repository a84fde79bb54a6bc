//! Who may be told: the hosts of the allow-list, at addresses that are public unless the config says
//! otherwise. Asked at submission and again before each call, because the config may have changed.

use std::fmt;
use std::net::IpAddr;

use shared::config::{HostPattern, WebhooksConfig};
use shared::net::{Addresses, PrivateAddress};
use url::Url;

use crate::submission::WebhookCheck;

/// Longest URL of a webhook, in bytes.
const MAX_URL_BYTES: usize = 2_048;

/// Who may be told.
#[derive(Debug, Clone)]
pub struct Receivers {
    allow: Vec<HostPattern>,
    pub(super) addresses: Addresses,
}

/// Why a webhook is refused. Never repeats the URL: it may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookRefused {
    /// No host is allowed.
    #[error("no host may be called: name some in webhooks.allow")]
    SwitchedOff,
    /// Over [`MAX_URL_BYTES`].
    #[error("it has {0} bytes, at most {MAX_URL_BYTES} are allowed")]
    TooLong(usize),
    /// No URL that HTTP could call.
    #[error("it is no URL that can be called: write https://host/path")]
    Malformed,
    /// With a user or password, which would end up in the ledger.
    #[error("it holds a user or password: put a token into its path or query instead")]
    Credentials,
    /// Not on the list.
    #[error("{0} is not among the hosts of webhooks.allow")]
    NotAllowed(String),
    /// On the list, but a private address.
    #[error("{0} is no public address: webhooks.allow_private would allow it")]
    PrivateAddress(IpAddr),
}

/// The host of a webhook: whom calls are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Receiver(String);

impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Receivers {
    /// Those that the config allows.
    #[must_use]
    pub fn new(config: &WebhooksConfig) -> Self {
        Self {
            allow: config.allow.clone(),
            addresses: Addresses::allowing_private(config.allow_private),
        }
    }

    /// Whether this webhook may be called. A name's address is looked at when it is called.
    pub fn allowed(&self, url: &str) -> Result<(), WebhookRefused> {
        self.read(url).map(|_| ())
    }

    pub(super) fn read(&self, url: &str) -> Result<Url, WebhookRefused> {
        if self.allow.is_empty() {
            return Err(WebhookRefused::SwitchedOff);
        }
        if url.len() > MAX_URL_BYTES {
            return Err(WebhookRefused::TooLong(url.len()));
        }
        let url = Url::parse(url).map_err(|_| WebhookRefused::Malformed)?;
        let host = url.host().ok_or(WebhookRefused::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(WebhookRefused::Malformed);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(WebhookRefused::Credentials);
        }
        if !self.allow.iter().any(|pattern| pattern.matches(&host)) {
            return Err(WebhookRefused::NotAllowed(host.to_string()));
        }
        self.addresses.check_literal(&url)?;
        Ok(url)
    }
}

impl From<PrivateAddress> for WebhookRefused {
    fn from(PrivateAddress(address): PrivateAddress) -> Self {
        Self::PrivateAddress(address)
    }
}

impl WebhookCheck for Receivers {
    fn check(&self, url: &str) -> Result<(), String> {
        self.allowed(url).map_err(|refused| refused.to_string())
    }
}

impl Receiver {
    /// Whom a stored URL means; one that means nobody is refused when its turn comes.
    pub(super) fn of(url: &str) -> Self {
        let url = Url::parse(url).ok();
        let host = url.as_ref().and_then(Url::host_str);
        Self(host.unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receivers(allow: &[&str], allow_private: bool) -> Receivers {
        let pattern = |text: &&str| HostPattern::try_from((*text).to_owned()).unwrap();
        Receivers {
            allow: allow.iter().map(pattern).collect(),
            addresses: Addresses::allowing_private(allow_private),
        }
    }

    #[test]
    fn only_what_is_listed_may_be_called() {
        let listed = receivers(&["hooks.example.com", "*.example.net", "8.8.8.8"], false);
        for fine in [
            "https://hooks.example.com/x?token=1",
            "http://hooks.example.com:8080",
            "https://a.b.example.net/",
            "https://8.8.8.8/",
        ] {
            assert_eq!(listed.allowed(fine), Ok(()), "{fine}");
        }
        let not_allowed = |host: &str| WebhookRefused::NotAllowed(host.to_owned());
        let cases = [
            ("https://example.net/", not_allowed("example.net")),
            (
                "https://hooks.example.com@evil.example/",
                WebhookRefused::Credentials,
            ),
            (
                "https://evil.example/hooks.example.com",
                not_allowed("evil.example"),
            ),
            ("https://8.8.4.4/", not_allowed("8.8.4.4")),
            ("ftp://hooks.example.com/", WebhookRefused::Malformed),
            ("file:///etc/passwd", WebhookRefused::Malformed),
            ("hooks.example.com", WebhookRefused::Malformed),
            ("", WebhookRefused::Malformed),
            (
                "https://user:pw@hooks.example.com/",
                WebhookRefused::Credentials,
            ),
        ];
        for (url, expected) in cases {
            assert_eq!(listed.allowed(url), Err(expected), "{url}");
        }
        let long = format!("https://hooks.example.com/{}", "x".repeat(MAX_URL_BYTES));
        assert_eq!(
            listed.allowed(&long),
            Err(WebhookRefused::TooLong(long.len()))
        );
        let off = receivers(&[], true);
        assert_eq!(
            off.allowed("https://hooks.example.com/"),
            Err(WebhookRefused::SwitchedOff)
        );
    }

    #[test]
    fn a_listed_address_must_be_public_all_the_same() {
        let hosts = ["127.0.0.1", "[::1]", "169.254.169.254"];
        for url in [
            "http://127.1/",
            "http://2130706433/",
            "http://[::1]:80/",
            "http://169.254.169.254/latest",
        ] {
            let refused = receivers(&hosts, false).allowed(url);
            assert!(
                matches!(refused, Err(WebhookRefused::PrivateAddress(_))),
                "{url}: {refused:?}"
            );
            assert_eq!(receivers(&hosts, true).allowed(url), Ok(()), "{url}");
        }
    }
}
