//! Who connects: whom it trusts, and as whom it comes.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use super::files::{FileError, Identity, certificates};
use super::provider;

/// Files of a connection that somebody else has to accept. They are read for each connection, so that the next one
/// uses what was put in their place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Certificates of the CAs that are trusted; `None`: those of the machine.
    pub ca: Option<PathBuf>,
    /// Our own certificate, for servers that ask for one.
    pub identity: Option<Identity>,
}

impl ClientFiles {
    /// Reads the files. The server's certificate has to be valid for the name that is connected to: there is no way
    /// to do without.
    ///
    /// # Panics
    /// Never: the provider has TLS 1.2 and 1.3.
    pub fn read(&self) -> Result<Arc<ClientConfig>, FileError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions");
        let builder = match &self.ca {
            Some(path) => {
                let mut trusted = RootCertStore::empty();
                for certificate in certificates(path)? {
                    let added = trusted.add(certificate);
                    added.map_err(|problem| FileError::Unusable {
                        path: path.clone(),
                        problem,
                    })?;
                }
                builder.with_root_certificates(trusted)
            }
            None => builder
                .with_platform_verifier()
                .map_err(FileError::Machine)?,
        };
        let Some(identity) = &self.identity else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let (chain, key) = identity.read()?;
        let config = builder.with_client_auth_cert(chain, key);
        config.map(Arc::new).map_err(|problem| FileError::Unusable {
            path: identity.key.clone(),
            problem,
        })
    }
}
