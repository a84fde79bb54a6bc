//! What the sections say about TLS, and what they leave unprotected.

use std::net::IpAddr;
use std::path::PathBuf;

use super::{Config, ConfigError, DatabaseUrl};
use crate::tls::{Identity, ServerTls};

/// A connection that others could read, or that goes to whoever answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unprotected {
    /// The key that says so.
    pub key: String,
    /// What it is, and what would be right.
    pub problem: String,
}

impl Config {
    /// The connections to other machines that are not protected by TLS: to the broker, to databases, of the API's
    /// callers. With `require_tls` there are none.
    #[must_use]
    pub fn unprotected(&self) -> Vec<Unprotected> {
        let broker = self
            .broker
            .unprotected()
            .map(|p| ("broker.url".to_owned(), p));
        let api = self.api.unprotected().map(|p| ("api.listen".to_owned(), p));
        let databases = self.databases().into_iter();
        let databases = databases.filter_map(|(key, url)| Some((key, url.unprotected()?)));
        let found = broker.into_iter().chain(api).chain(databases);
        found
            .map(|(key, problem)| Unprotected { key, problem })
            .collect()
    }

    /// Those that are named, with their keys.
    fn databases(&self) -> Vec<(String, &DatabaseUrl)> {
        let ledger = self
            .ledger
            .url
            .iter()
            .map(|url| ("ledger.url".to_owned(), url));
        let sink = self.sink.url.iter().map(|url| ("sink.url".to_owned(), url));
        let named = self.sinks.iter().filter_map(|(name, sink)| {
            let url = sink.url.as_ref()?;
            Some((format!("sinks.{name}.url"), url))
        });
        ledger.chain(sink).chain(named).collect()
    }

    /// Writes them to the log, for the start of a program.
    pub fn warn_of_unprotected(&self) {
        for Unprotected { key, problem } in self.unprotected() {
            tracing::warn!(key, "{problem}; require_tls = true would refuse it");
        }
    }

    pub(super) fn check_tls(&self) -> Result<(), ConfigError> {
        for (key, url) in self.databases() {
            url.check(&key)?;
        }
        if !self.require_tls {
            return Ok(());
        }
        match self.unprotected().into_iter().next() {
            Some(Unprotected { key, problem }) => Err(ConfigError::wrong(
                key,
                format!("{problem} (require_tls is set)"),
            )),
            None => Ok(()),
        }
    }
}

/// The certificate and key that a section names: both or none.
pub(super) fn identity(
    section: &str,
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<Option<Identity>, ConfigError> {
    let missing = |missing: &str, given: &str| {
        let problem = format!("is missing: {section}.{given} needs it");
        Err(ConfigError::wrong(format!("{section}.{missing}"), problem))
    };
    match (certificate.cloned(), key.cloned()) {
        (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => missing("key_file", "cert_file"),
        (None, Some(_)) => missing("cert_file", "key_file"),
    }
}

/// What a section that listens speaks TLS with.
pub(super) fn server(
    section: &str,
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<Option<ServerTls>, ConfigError> {
    let identity = identity(section, certificate, key)?;
    let opened = identity.map(ServerTls::open).transpose();
    opened
        .map_err(|problem| ConfigError::wrong(format!("{section}.cert_file"), problem.to_string()))
}

/// Whether what goes to this host stays on this machine.
pub(super) fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{problem, read};

    #[test]
    fn what_is_not_protected_is_told_or_refused() {
        let token = "[api]\ntoken = \"x\"\n";
        let cases = [
            (
                "[broker]\nurl = \"amqp://u:p@rabbit/v\"".to_owned(),
                "broker.url",
            ),
            (
                "[ledger]\nurl = \"postgres://u:p@db/d\"".to_owned(),
                "ledger.url",
            ),
            (
                "[sink]\nurl = \"postgres://u:p@db/d\"".to_owned(),
                "sink.url",
            ),
            (format!("{token}listen = \"0.0.0.0:1\""), "api.listen"),
        ];
        for (toml, key) in cases {
            let found = read(&toml).unwrap().unprotected();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].key, key);
            let problem = problem(&format!("require_tls = true\n{toml}"));
            assert!(problem.starts_with(&format!("{key}: ")), "{problem}");
            assert!(problem.contains("require_tls"), "{problem}");
        }
        assert!(read("require_tls = true").is_ok(), "loopback and files");
    }

    #[test]
    fn certificates_belong_together_and_to_tls() {
        for (toml, expected) in [
            (
                "[broker]\nurl = \"amqps://h\"\ncert_file = \"x\"",
                "broker.key_file: is missing",
            ),
            ("[broker]\nca_file = \"x\"", "belong to amqps://"),
            ("[broker]\nurl = \"amqp://u:p@[::1]/v\"", "give it a name"),
            (
                "[broker]\nurl = \"amqp://h/v?frame_max=128k\"",
                "broker.url: ",
            ),
            (
                "[broker]\nurl = \"amqps://h\"\nca_file = \"/no/ca.pem\"",
                "cannot read certificate from /no/ca.pem",
            ),
            (
                "[broker]\nurl = \"amqp://u:p@h\"\npassword_file = \"x\"",
                "leave one of them out",
            ),
            (
                "[broker]\nurl = \"amqp://u@h\"\npassword_file = \"/no/password\"",
                "broker.password_file: cannot read",
            ),
            ("[api]\nkey_file = \"x\"", "api.cert_file: is missing"),
            (
                "[api]\ncert_file = \"/no/c\"\nkey_file = \"/no/k\"",
                "api.cert_file: cannot read certificate",
            ),
            ("[worker]\ncert_file = \"x\"", "worker.key_file: is missing"),
        ] {
            let problem = problem(toml);
            assert!(problem.contains(expected), "{toml}: {problem}");
        }
    }

    #[test]
    fn the_password_is_that_of_the_file_at_that_moment() {
        use secrecy::ExposeSecret;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "one\n").unwrap();
        let toml = format!("[broker]\nurl = \"amqp://u@h/v\"\npassword_file = {file:?}");
        let broker = read(&toml).unwrap().broker;
        let url = || broker.client_url().unwrap().expose_secret().to_owned();
        assert!(url().starts_with("amqp://u:one@h/v?"), "{}", url());
        std::fs::write(&file, "t/%41@\n").unwrap();
        assert!(url().starts_with("amqp://u:t%2F%2541%40@h/v?"), "{}", url());
        let password = broker.client_uri().unwrap().authority.userinfo.password;
        assert_eq!(password, "t/%41@");
    }
}
