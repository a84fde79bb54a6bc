//! What a PostgreSQL URL says about TLS. The parameters are PostgreSQL's own: `sslmode`, `sslrootcert`, `sslcert`,
//! `sslkey`.

use std::borrow::Cow;
use std::path::PathBuf;

use secrecy::ExposeSecret;
use url::Url;

use super::tls::is_this_machine;
use super::{ConfigError, DatabaseUrl};
use crate::tls::{ClientFiles, Identity};

/// The modes that PostgreSQL knows.
const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];
/// The only one that says who answers.
const VERIFIED: &str = "verify-full";
/// Those that look at the server's certificate.
const LOOKING: [&str; 2] = ["verify-ca", VERIFIED];

impl DatabaseUrl {
    /// Whether what it says about TLS can be done. The files are read for each connection; here it is tried once, so
    /// that a missing one is not taken for a database that is away.
    pub(super) fn check(&self, key: &str) -> Result<(), ConfigError> {
        let wrong = |problem: String| Err(ConfigError::wrong(key, problem));
        let Some(url) = self.postgres() else {
            return Ok(());
        };
        let mode = parameter(&url, &["sslmode", "ssl-mode"]);
        if let Some(mode) = mode.as_deref().filter(|mode| !MODES.contains(mode)) {
            return wrong(format!(
                "has sslmode={mode:?}: use one of {}",
                MODES.join(", ")
            ));
        }
        let file = |names: &[&str]| parameter(&url, names).map(|path| PathBuf::from(&*path));
        let ca = file(&["sslrootcert", "ssl-root-cert", "ssl-ca"]);
        let certificate = file(&["sslcert", "ssl-cert"]);
        let identity = match (certificate, file(&["sslkey", "ssl-key"])) {
            (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
            (None, None) => None,
            _ => return wrong("has one of sslcert and sslkey: it takes both".to_owned()),
        };
        let files = ClientFiles { ca, identity };
        if files == ClientFiles::default() {
            return Ok(());
        }
        if mode.is_none_or(|mode| !LOOKING.contains(&&*mode)) {
            return wrong(format!(
                "names certificates, and without sslmode={VERIFIED} whoever answers is believed: add it"
            ));
        }
        match files.read() {
            Ok(_) => Ok(()),
            Err(problem) => wrong(problem.to_string()),
        }
    }

    /// Who can read along, or answer in its place.
    pub(super) fn unprotected(&self) -> Option<String> {
        let url = self.postgres()?;
        let host = parameter(&url, &["hostaddr", "host"]);
        let host = host.or_else(|| url.host_str().map(Cow::from));
        let host = host.filter(|host| !host.is_empty());
        let host = host.or_else(|| host_of_the_environment().map(Cow::from))?;
        // A path is that of a socket.
        let is_here = ["/", "%2f", "%2F"]
            .iter()
            .any(|root| host.starts_with(root))
            || is_this_machine(&host);
        let is_verified = parameter(&url, &["sslmode", "ssl-mode"]).is_some_and(|m| m == VERIFIED);
        let problem = || {
            format!(
                "{} may be another server than it seems, and not encrypted: add ?sslmode={VERIFIED}, and \
                 sslrootcert=FILE for a CA of your own",
                self.address()
            )
        };
        (!is_here && !is_verified).then(problem)
    }

    fn postgres(&self) -> Option<Url> {
        match self {
            Self::Postgres(url) => Url::parse(url.expose_secret()).ok(),
            Self::Sqlite(_) => None,
        }
    }
}

/// Where the database library goes when the URL names no host.
fn host_of_the_environment() -> Option<String> {
    let mut variables = ["PGHOSTADDR", "PGHOST"].into_iter();
    variables.find_map(|name| std::env::var(name).ok())
}

/// The last of these parameters, which is the one that counts.
fn parameter<'a>(url: &'a Url, names: &[&str]) -> Option<Cow<'a, str>> {
    let pairs = url
        .query_pairs()
        .filter(|(name, _)| names.contains(&&**name));
    pairs.last().map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{problem, read};

    fn ledger(parameters: &str) -> String {
        format!("[ledger]\nurl = \"postgres://u:hunter2@db.example/d{parameters}\"")
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_the_password() {
        for (parameters, expected) in [
            ("?sslmode=verify_full", "verify-full"),
            ("?sslrootcert=/ca.pem", "add it"),
            ("?sslmode=require&sslrootcert=/ca.pem", "add it"),
            ("?sslmode=verify-full&sslcert=/me.pem", "it takes both"),
            ("?sslmode=verify-full&sslrootcert=/no/ca.pem", "cannot read"),
        ] {
            let problem = problem(&ledger(parameters));
            assert!(problem.starts_with("ledger.url: "), "{problem}");
            assert!(problem.contains(expected), "{parameters}: {problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_database_is_protected_when_it_is_verified_or_here() {
        let unprotected = |url: &str| {
            let toml = format!("[sinks.x]\nurl = \"{url}\"");
            let keys = read(&toml).unwrap().unprotected().into_iter();
            keys.map(|found| found.key).collect::<Vec<_>>()
        };
        for safe in [
            "postgres://u@db.example/d?sslmode=verify-full",
            "postgres://u@127.0.0.1/d",
            "postgres://u@[::1]/d?sslmode=disable",
            "postgres://u@localhost/d",
            "postgres://u@%2Frun%2Fpostgresql/d",
            "postgres:///d?host=/run/postgresql",
            "sqlite://x.db",
        ] {
            assert!(unprotected(safe).is_empty(), "{safe}");
        }
        for bad in [
            "postgres://u@db.example/d",
            "postgres://u@db.example/d?sslmode=prefer",
            "postgres://u@db.example/d?sslmode=require",
            "postgres://u@db.example/d?sslmode=verify-ca",
            "postgres://u@db.example/d?sslmode=verify-full&sslmode=disable",
            "postgres://u@localhost/d?host=db.example",
            "postgres://u@db.example/d?hostaddr=127.0.0.1&host=db.example",
        ] {
            assert_eq!(unprotected(bad), ["sinks.x.url"], "{bad}");
        }
    }
}
