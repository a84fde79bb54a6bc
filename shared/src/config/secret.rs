//! Secrets in files, such as those that an orchestrator mounts and renews.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::ConfigError;

/// Most bytes of a file: no secret is longer, and `/dev/zero` is.
const MAX_BYTES: u64 = 64 * 1024;

/// What a file holds, without white space around it: editors and `echo` end a file with a new line. `key` is the key
/// that names the file.
pub(super) fn read(key: &str, path: &Path) -> Result<SecretString, ConfigError> {
    let wrong = |problem: String| ConfigError::wrong(key, problem);
    let unreadable = |error| wrong(format!("cannot read {}: {error}", path.display()));
    let file = File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    let length = file.take(MAX_BYTES + 1).read_to_string(&mut text);
    let length = length.map_err(unreadable)?;
    let text = SecretString::from(text);
    if u64::try_from(length).unwrap_or(u64::MAX) > MAX_BYTES {
        let problem = format!("{} is longer than {MAX_BYTES} bytes", path.display());
        return Err(wrong(problem));
    }
    let secret = text.expose_secret().trim();
    if secret.is_empty() {
        return Err(wrong(format!("{} is empty", path.display())));
    }
    Ok(SecretString::from(secret))
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
