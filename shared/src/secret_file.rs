//! A secret in a file, such as an orchestrator mounts.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

/// Why a file gives no secret.
#[derive(Debug)]
pub(crate) enum NoSecret {
    /// It cannot be read.
    Unreadable(io::Error),
    /// It goes on where no secret would: `/dev/zero` never ends.
    TooLong,
}

/// What is in a file of at most so many bytes, without white space around it: editors and `echo` end a file with a new
/// line.
pub(crate) fn read(path: &Path, max_bytes: u64) -> Result<SecretString, NoSecret> {
    let file = File::open(path).map_err(NoSecret::Unreadable)?;
    let mut text = String::new();
    let length = file.take(max_bytes + 1).read_to_string(&mut text);
    let length = length.map_err(NoSecret::Unreadable)?;
    let text = SecretString::from(text);
    if u64::try_from(length).unwrap_or(u64::MAX) > max_bytes {
        return Err(NoSecret::TooLong);
    }
    Ok(SecretString::from(text.expose_secret().trim()))
}
