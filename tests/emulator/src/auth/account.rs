//! Credentials for tests and the demo: made at run time, never kept in the repository.

use std::path::Path;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::config::{OauthClient, ServiceAccount};
use crate::generator::fnv;

/// Lines of PEM have 64 characters (RFC 7468, section 2).
const PEM_LINE: usize = 64;
/// A refresh token that works; the endpoint accepts any but `revoked`.
const REFRESH_TOKEN: &str = "1//emulator-refresh-token";

/// Why credentials could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The RSA key could not be made or encoded.
    #[error("cannot make an RSA key")]
    Key,
    /// The file could not be written.
    #[error("cannot write credentials: {0}")]
    Write(#[from] std::io::Error),
}

/// A service account with a fresh RSA key, worth nothing outside of the emulator.
#[derive(Clone)]
pub struct TestAccount {
    email: String,
    private_key: String,
    public_key: String,
}

impl TestAccount {
    /// A new key pair of 2,048 bits.
    pub fn generate(email: &str) -> Result<Self, AccountError> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| AccountError::Key)?;
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(|_| AccountError::Key)?;
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
            .map_err(|_| AccountError::Key)?;
        Ok(Self {
            email: email.to_owned(),
            private_key: pem("PRIVATE KEY", private.as_ref()),
            public_key: pem("PUBLIC KEY", public.as_ref()),
        })
    }

    /// Its address, which is also its name as a user.
    #[must_use]
    pub fn email(&self) -> &str {
        &self.email
    }

    /// The private key in PEM.
    #[must_use]
    pub fn private_key(&self) -> &str {
        &self.private_key
    }

    /// What makes an emulator accept it.
    #[must_use]
    pub fn registration(&self) -> ServiceAccount {
        ServiceAccount {
            email: self.email.clone(),
            public_key: self.public_key.clone(),
        }
    }

    /// The JSON key file as Google hands it out, for the emulator at `url`.
    #[must_use]
    pub fn key_file(&self, url: &str) -> String {
        let key_id = format!("{:016x}", fnv(&self.public_key));
        let file = json!({
            "type": "service_account",
            "project_id": "search-console-emulator",
            "private_key_id": key_id,
            "private_key": self.private_key,
            "client_email": self.email,
            "client_id": "100000000000000000000",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": format!("{url}/token"),
            "universe_domain": "googleapis.com",
        });
        format!("{file:#}\n")
    }

    /// Writes [`Self::key_file`], readable by its owner only.
    pub fn write_key_file(&self, path: &Path, url: &str) -> Result<(), AccountError> {
        Ok(write_private(path, &self.key_file(url))?)
    }
}

/// The JSON file of an OAuth user (`authorized_user`), for the emulator at `url`.
#[must_use]
pub fn user_file(client: &OauthClient, url: &str) -> String {
    let file = json!({
        "type": "authorized_user",
        "client_id": client.client_id,
        "client_secret": client.client_secret,
        "refresh_token": REFRESH_TOKEN,
        "token_uri": format!("{url}/token"),
        "universe_domain": "googleapis.com",
    });
    format!("{file:#}\n")
}

/// Writes [`user_file`], readable by its owner only.
pub fn write_user_file(path: &Path, client: &OauthClient, url: &str) -> Result<(), AccountError> {
    Ok(write_private(path, &user_file(client, url))?)
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(PEM_LINE)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
