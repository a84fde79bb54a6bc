//! Secrets in files, such as those that an orchestrator mounts and renews.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::ConfigError;

/// The one word that a file holds, without white space around it. `key` is the key that names the file.
pub(super) fn from_file(key: &str, path: &Path) -> Result<SecretString, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::wrong(key, format!("cannot read {}: {error}", path.display()))
    })?;
    one_word(key, &SecretString::from(text))
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
