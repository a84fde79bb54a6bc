//! `[signing]`: signatures on messages.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// Signatures on messages. `TIDEGATE_SIGNING__…`. Coordinator and workers say the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SigningConfig {
    /// Whether messages are signed and checked. Default `off`.
    pub mode: SigningMode,
    /// Folder of the keys: each file is one (32 to 4,096 visible ASCII characters, such as from
    /// `openssl rand -hex 32`), named after its id, and the file `current` holds the id of the one that signs. All
    /// are accepted (up to 16). Looked at every five seconds, so that keys can be rotated without a restart; files
    /// whose name begins with a dot are left alone. Default: none, which only `off` allows.
    pub keys_folder: Option<PathBuf>,
}

/// What is done about signatures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SigningMode {
    /// Nothing. Signatures of others are not looked at.
    #[default]
    Off,
    /// Everything is signed; what is unsigned or wrong is counted (`tidegate_bad_signatures_total`), and taken all
    /// the same. For changing a fleet over: it protects from nothing.
    Observe,
    /// Everything is signed; what is unsigned or wrong is refused.
    Require,
}

impl SigningConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.mode != SigningMode::Off && self.keys_folder.is_none() {
            return Err(self.no_folder());
        }
        Ok(())
    }

    pub(crate) fn no_folder(&self) -> ConfigError {
        ConfigError::wrong(
            "signing.keys_folder",
            format!(
                "is missing, and signing.mode is {:?}: name the folder of the keys",
                self.mode
            ),
        )
    }
}
