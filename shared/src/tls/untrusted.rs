//! Why a TLS connection did not come about, found in whatever error a library made of it, and what to do.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

/// The two sides do not trust each other. Trying again is pointless until a person has changed something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Signed by nobody whom we trust.
    #[error(
        "its certificate comes from a CA that is not trusted here: name that CA's certificate in {ca}"
    )]
    UnknownCa {
        /// The key or flag that names CAs.
        ca: &'static str,
    },
    /// Somebody else's certificate.
    #[error(
        "its certificate is not for this host name ({0}): connect by a name that is in it, or have one made for this name"
    )]
    WrongName(String),
    /// Not valid now.
    #[error("its certificate is not valid now ({0}): renew it, or set the clock right")]
    WrongTime(String),
    /// Anything else about its certificate.
    #[error("its certificate cannot be verified ({0})")]
    BadCertificate(String),
    /// It does not speak TLS at all.
    #[error(
        "it does not speak TLS there ({0}): use the port on which it does; nothing was sent in plain"
    )]
    Plain(String),
    /// It wants to know who we are, or does not accept what we showed.
    #[error("it does not accept our certificate, or wants one ({problem}): see {identity}")]
    Refused {
        /// Its alert.
        problem: String,
        /// The keys that name our certificate.
        identity: &'static str,
    },
}

impl Untrusted {
    /// Looks for a TLS error in `error` and what caused it. `ca` and `identity` are the keys that name certificates,
    /// for the advice.
    #[must_use]
    pub fn find(
        error: &(dyn Error + 'static),
        ca: &'static str,
        identity: &'static str,
    ) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref() {
                return Self::from_tls(error, ca, identity);
            }
            // The source of an IO error is that of the error in it.
            let inner = error.downcast_ref().and_then(io::Error::get_ref);
            next = match inner {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }

    /// The same for a PostgreSQL server, whose URL names the files.
    #[must_use]
    pub fn find_postgres(error: &(dyn Error + 'static)) -> Option<Self> {
        Self::find(
            error,
            "sslrootcert of the database's URL",
            "sslcert and sslkey of the database's URL",
        )
    }

    fn from_tls(error: &TlsError, ca: &'static str, identity: &'static str) -> Option<Self> {
        use CertificateError as Certificate;
        let problem = error.to_string();
        Some(match error {
            TlsError::InvalidCertificate(error) => match error {
                Certificate::UnknownIssuer => Self::UnknownCa { ca },
                Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                    Self::WrongName(problem)
                }
                Certificate::Expired
                | Certificate::ExpiredContext { .. }
                | Certificate::NotValidYet
                | Certificate::NotValidYetContext { .. } => Self::WrongTime(problem),
                _ => Self::BadCertificate(problem),
            },
            TlsError::InvalidMessage(_) => Self::Plain(problem),
            TlsError::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::HandshakeFailure,
            ) => Self::Refused { problem, identity },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(error: &(dyn Error + 'static)) -> Option<Untrusted> {
        Untrusted::find(error, "x.ca_file", "x.cert_file")
    }

    #[test]
    fn a_tls_error_is_found_wherever_it_hides() {
        let tls = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let unknown = Some(Untrusted::UnknownCa { ca: "x.ca_file" });
        assert_eq!(find(&tls()), unknown);
        assert_eq!(find(&io::Error::other(tls())), unknown);
        assert_eq!(find(&io::Error::other(io::Error::other(tls()))), unknown);
        assert_eq!(find(&io::Error::other("x")), None);
        let broken = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(find(&broken), None, "this may pass");
    }

    #[test]
    fn each_says_what_to_do() {
        let said = |error: TlsError| find(&error).unwrap().to_string();
        for (error, advice) in [
            (CertificateError::UnknownIssuer, "x.ca_file"),
            (CertificateError::NotValidForName, "by a name that is in"),
            (CertificateError::Expired, "renew it"),
            (CertificateError::Revoked, "cannot be verified"),
        ] {
            let said = said(TlsError::InvalidCertificate(error));
            assert!(said.contains(advice), "{said}");
        }
        let refused = said(TlsError::AlertReceived(
            AlertDescription::CertificateRequired,
        ));
        assert!(refused.contains("x.cert_file"), "{refused}");
        let plain = rustls::InvalidMessage::InvalidContentType;
        assert!(said(TlsError::InvalidMessage(plain)).contains("does not speak TLS"));
    }
}
