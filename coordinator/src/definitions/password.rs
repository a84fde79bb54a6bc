//! Passwords as the broker keeps them.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A password that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// There is no such file, or it is not ours to read.
    #[error("password file {path}: {problem}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        problem: io::Error,
    },
    /// There is nothing in it.
    #[error("password file {0} is empty: write a password into it")]
    Empty(PathBuf),
}

/// RabbitMQ's salted hash (its guide "Passwords": Base64 of the salt and of SHA-256 over salt and password).
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct PasswordHash(String);

impl PasswordHash {
    /// No password fits.
    pub(super) fn none() -> Self {
        Self(String::new())
    }

    /// Of the password in a file, without white space around it.
    pub(super) fn of_file(path: &Path) -> Result<Self, PasswordError> {
        let unreadable = |problem| PasswordError::Unreadable {
            path: path.to_owned(),
            problem,
        };
        let password = SecretString::from(std::fs::read_to_string(path).map_err(unreadable)?);
        let password = password.expose_secret().trim();
        if password.is_empty() {
            return Err(PasswordError::Empty(path.to_owned()));
        }
        Ok(Self::salted(password, rand::random()))
    }

    fn salted(password: &str, salt: [u8; 4]) -> Self {
        let digest = Sha256::new()
            .chain_update(salt)
            .chain_update(password)
            .finalize();
        Self(BASE64_STANDARD.encode([&salt[..], &digest].concat()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RabbitMQ's guide "Credentials and Passwords".
    #[test]
    fn hashes_are_those_of_the_guide() {
        let hash = PasswordHash::salted("test12", [0x90, 0x8d, 0xc6, 0x0a]);
        assert_eq!(hash.0, "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR");
    }
}
