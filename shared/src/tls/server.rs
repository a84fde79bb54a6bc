//! Who is connected to: its certificate, renewed without a restart.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

use super::files::{FileError, Identity};
use super::provider;
use crate::fresh::FromFiles;

/// Accepts TLS connections of HTTP/1.1, each with the certificate that the files hold at that moment. While
/// certificate and key do not belong together, because one of them is yet to be replaced, the former pair stays.
#[derive(Debug)]
pub struct ServerTls(FromFiles<TlsAcceptor, FileError>);

impl ServerTls {
    /// Reads the files for the first time.
    pub fn open(identity: Identity) -> Result<Self, FileError> {
        let files = vec![identity.certificate.clone(), identity.key.clone()];
        FromFiles::new(files, move || acceptor(&identity)).map(Self)
    }

    /// For the next connection.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::clone(&self.0.get())
    }
}

fn acceptor(identity: &Identity) -> Result<TlsAcceptor, FileError> {
    let (chain, key) = identity.read()?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions");
    let config = builder.with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.map_err(|problem| FileError::Unusable {
        path: identity.key.clone(),
        problem,
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
