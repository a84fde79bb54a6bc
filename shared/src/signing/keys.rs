//! The keys: a folder in which each file is a key, named after its id, and the file `current` names the one that
//! signs. All of them are accepted. That is what a mounted Kubernetes Secret looks like.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use lapin::BasicProperties;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::signature::{self, SignatureError};
use super::{HEADER_SIGNATURE, Purpose};
use crate::secret_file::{self, NoSecret};

/// The file that names the key that signs.
const CURRENT: &str = "current";
/// Most keys at a time: a rotation needs two.
const MAX_KEYS: usize = 16;
/// Fewest bytes of a key: what `openssl rand -hex 32` prints is twice that. Shorter ones are guessed.
const MIN_KEY_BYTES: usize = 32;
/// Most bytes of a file: beyond, it is no key.
const MAX_FILE_BYTES: u64 = 4096;
/// Most bytes of an id.
const MAX_ID_BYTES: usize = 64;

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The folder, or a file in it, cannot be read.
    #[error("cannot read {}: {problem}", path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// The system's words.
        problem: std::io::Error,
    },
    /// A file is no key.
    #[error(
        "{} holds no key: {MIN_KEY_BYTES} to {MAX_FILE_BYTES} visible ASCII characters are expected, such as from \
         `openssl rand -hex 32`",
        .0.display()
    )]
    NoKey(PathBuf),
    /// A file has a name that is no id.
    #[error(
        "{} has a name that is no key id: use 1 to {MAX_ID_BYTES} letters, digits, '.', '_' and '-'",
        .0.display()
    )]
    NoId(PathBuf),
    /// Too many files.
    #[error("{} has more than {MAX_KEYS} keys: remove those that nobody signs with any more", .0.display())]
    TooMany(PathBuf),
    /// Nothing says which key signs, or it says one that is not there.
    #[error("{} must hold the id of the key that signs, one of {known}; it holds {found:?}", path.display())]
    Current {
        /// The file `current`.
        path: PathBuf,
        /// What it says.
        found: String,
        /// The ids that there are.
        known: String,
    },
}

/// What signs and what is accepted.
#[derive(PartialEq)]
pub(super) struct Keys {
    by_id: BTreeMap<String, Key>,
    current: String,
}

/// HMAC with the key worked in: the key itself is not kept, and each message costs two blocks less.
struct Key {
    mac: Hmac<Sha256>,
    /// Tells keys apart, and nothing about them.
    fingerprint: Vec<u8>,
}

impl Keys {
    /// Reads a folder. Files whose name begins with a dot are not looked at: Kubernetes has its own there.
    pub(super) fn read(folder: &Path) -> Result<Self, KeysError> {
        let unreadable = |problem| KeysError::Unreadable {
            path: folder.to_owned(),
            problem,
        };
        let mut by_id = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let path = folder.join(&name);
            let Some(id) = name.to_str() else {
                return Err(KeysError::NoId(path));
            };
            if id.starts_with('.') || id == CURRENT {
                continue;
            }
            if !is_id(id) {
                return Err(KeysError::NoId(path));
            }
            if by_id.len() == MAX_KEYS {
                return Err(KeysError::TooMany(folder.to_owned()));
            }
            by_id.insert(id.to_owned(), Key::read(path)?);
        }
        let path = folder.join(CURRENT);
        let current = text(&path)?.expose_secret().to_owned();
        if !by_id.contains_key(&current) {
            let known: Vec<&str> = by_id.keys().map(String::as_str).collect();
            return Err(KeysError::Current {
                path,
                // Somebody may have put a key there.
                found: if is_id(&current) && current.len() < MIN_KEY_BYTES {
                    current
                } else {
                    "…".to_owned()
                },
                known: known.join(", "),
            });
        }
        Ok(Self { by_id, current })
    }

    /// The signature of a message.
    pub(super) fn sign(
        &self,
        purpose: Purpose,
        properties: &BasicProperties,
        body: &[u8],
    ) -> String {
        let mac = self.by_id[&self.current].mac.clone();
        signature::make(mac, &self.current, purpose, properties, body)
    }

    /// Whether a message carries its signature.
    pub(super) fn check(
        &self,
        purpose: Purpose,
        properties: &BasicProperties,
        body: &[u8],
    ) -> Result<(), SignatureError> {
        let headers = properties.headers().as_ref();
        let found = headers.and_then(|headers| headers.inner().get(HEADER_SIGNATURE));
        let (id, tag) = signature::read(found.ok_or(SignatureError::Missing)?)?;
        let Some(key) = self.by_id.get(id) else {
            return Err(SignatureError::UnknownKey(id.to_owned()));
        };
        signature::check(key.mac.clone(), id, &tag, purpose, properties, body)
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.by_id.keys().map(String::as_str).collect();
        write!(f, "accepts {}, signs with {}", ids.join(", "), self.current)
    }
}

impl Key {
    fn read(path: PathBuf) -> Result<Self, KeysError> {
        let text = text(&path)?;
        let bytes = text.expose_secret().as_bytes();
        if bytes.len() < MIN_KEY_BYTES || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(KeysError::NoKey(path));
        }
        let mac = Hmac::<Sha256>::new_from_slice(bytes).expect("HMAC takes keys of any length");
        let fingerprint = mac.clone().chain_update(b"fingerprint").finalize();
        Ok(Self {
            mac,
            fingerprint: fingerprint.into_bytes().to_vec(),
        })
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

/// Whether it can name a key: in a file's name, in a header, in a log.
pub(super) fn is_id(text: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(is_fine)
}

/// What is in a file.
fn text(path: &Path) -> Result<SecretString, KeysError> {
    secret_file::read(path, MAX_FILE_BYTES).map_err(|why| match why {
        NoSecret::Unreadable(problem) => KeysError::Unreadable {
            path: path.to_owned(),
            problem,
        },
        NoSecret::TooLong => KeysError::NoKey(path.to_owned()),
    })
}
