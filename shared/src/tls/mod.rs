//! TLS, one way for everything: rustls, certificates in PEM files that are read again whenever a connection is
//! made, and no way to go on when the other side cannot be verified.
//!
//! `client` is for who connects, `server` for who is connected to, [`Untrusted`] says why a handshake failed and what
//! to do about it.

mod client;
mod files;
mod only;
mod server;
mod untrusted;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use client::ClientFiles;
pub use files::{FileError, Identity};
pub use only::only;
pub use server::ServerTls;
pub use untrusted::Untrusted;

/// The one that every other library here uses, too.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
