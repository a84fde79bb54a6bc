//! Certificates and keys as PEM files.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read, or is no PEM.
    #[error("cannot read {wanted} from {}: {problem}", path.display())]
    Unreadable {
        /// What was looked for.
        wanted: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system or the parser says.
        problem: String,
    },
    /// There is none in it.
    #[error("{} holds no {wanted}: PEM is expected, with -----BEGIN … lines", path.display())]
    Missing {
        /// What was looked for.
        wanted: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// rustls does not take it.
    #[error("{} cannot be used: {problem}", path.display())]
    Unusable {
        /// Where it is.
        path: PathBuf,
        /// Why.
        problem: rustls::Error,
    },
    /// The machine's own certificates cannot be used.
    #[error("the machine's CA certificates cannot be used: {0}")]
    Machine(rustls::Error),
}

/// A certificate, with the intermediate ones after it, and its key, without a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Where the certificate is.
    pub certificate: PathBuf,
    /// Where its key is.
    pub key: PathBuf,
}

impl Identity {
    /// Reads both.
    pub(super) fn read(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), FileError> {
        Ok((certificates(&self.certificate)?, key(&self.key)?))
    }
}

/// All certificates of a file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    const WANTED: &str = "certificate";
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|error| unreadable(WANTED, path, &error))?;
    if found.is_empty() {
        return Err(missing(WANTED, path));
    }
    if let Some(expiry) = found.iter().filter_map(expiry).min() {
        let file = path.display().to_string();
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds of this millennium are exact"
        )]
        metrics::gauge!("tidegate_certificate_expires_seconds", "file" => file).set(expiry as f64);
    }
    Ok(found)
}

/// When it ends, in seconds since 1970. One that cannot be parsed is judged by whoever uses it.
fn expiry(certificate: &CertificateDer<'static>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    const WANTED: &str = "private key";
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => missing(WANTED, path),
        error => unreadable(WANTED, path, &error),
    })
}

fn unreadable(wanted: &'static str, path: &Path, error: &pem::Error) -> FileError {
    // What the parser says of other errors could repeat a part of a key.
    let problem = match error {
        pem::Error::Io(error) => error.to_string(),
        _ => "it is no PEM".to_owned(),
    };
    FileError::Unreadable {
        wanted,
        path: path.to_owned(),
        problem,
    }
}

fn missing(wanted: &'static str, path: &Path) -> FileError {
    FileError::Missing {
        wanted,
        path: path.to_owned(),
    }
}
