//! Secrets in files, such as those that an orchestrator mounts and renews.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::ConfigError;
use crate::secret_file::{self, NoSecret};

/// Most bytes of a file: no secret is longer.
const MAX_BYTES: u64 = 64 * 1024;

/// What a file holds. `key` is the key that names the file.
pub(super) fn read(key: &str, path: &Path) -> Result<SecretString, ConfigError> {
    let file = path.display();
    let problem = match secret_file::read(path, MAX_BYTES) {
        Ok(secret) if secret.expose_secret().is_empty() => format!("{file} is empty"),
        Ok(secret) => return Ok(secret),
        Err(NoSecret::Unreadable(error)) => format!("cannot read {file}: {error}"),
        Err(NoSecret::TooLong) => format!("{file} is longer than {MAX_BYTES} bytes"),
    };
    Err(ConfigError::wrong(key, problem))
}

/// The one word that a file holds.
pub(super) fn from_file(key: &str, path: &Path) -> Result<SecretString, ConfigError> {
    one_word(key, &read(key, path)?)
}

/// The same for a secret that was written somewhere else.
pub(super) fn one_word(key: &str, text: &SecretString) -> Result<SecretString, ConfigError> {
    let text = text.expose_secret().trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        // The text is a secret, so it is not repeated.
        let problem = "holds nothing usable: one word of visible ASCII characters is expected";
        return Err(ConfigError::wrong(key, problem));
    }
    Ok(SecretString::from(text))
}
