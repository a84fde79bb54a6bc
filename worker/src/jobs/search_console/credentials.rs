//! The credentials file: a service account's key, or what `gcloud auth application-default login` leaves
//! behind. Read once, at start, so that a bad file stops the worker instead of failing every batch.

use std::path::{Path, PathBuf};

use jsonwebtoken::EncodingKey;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use shared::name::Key;
use url::Url;
use xxhash_rust::xxh3::xxh3_64;

/// Google's token endpoint; also what a service account's assertion is addressed to, whatever
/// `token_uri` says (as Google's own library does it).
pub(super) const GOOGLE_TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// Why a credentials file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("the credentials file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no credentials file, or lacks something.
    #[error("the credentials file {} cannot be used: {problem}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it. Never a value from the file: they are secret.
        problem: String,
    },
}

/// Who calls the API.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) grant: Grant,
    pub(super) token_uri: Url,
}

/// What is shown to the token endpoint.
pub(super) enum Grant {
    ServiceAccount {
        email: String,
        key_id: Option<String>,
        key: EncodingKey,
    },
    AuthorizedUser {
        client_id: String,
        client_secret: SecretString,
        refresh_token: SecretString,
    },
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ServiceAccount { .. } => "ServiceAccount",
            Self::AuthorizedUser { .. } => "AuthorizedUser",
        })
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "type")]
    kind: Option<String>,
    client_email: Option<String>,
    private_key: Option<String>,
    private_key_id: Option<String>,
    client_id: Option<String>,
    client_secret: Option<SecretString>,
    refresh_token: Option<SecretString>,
    token_uri: Option<String>,
}

impl Credentials {
    /// What Google counts calls by: the account, of which nothing secret is said.
    pub(super) fn counted_as(&self) -> Key {
        let account = match &self.grant {
            Grant::ServiceAccount { email, .. } => email.clone(),
            // Who logged in is not in the file; each login has a token of its own.
            Grant::AuthorizedUser {
                client_id,
                refresh_token,
                ..
            } => {
                let login = xxh3_64(refresh_token.expose_secret().as_bytes());
                format!("{client_id}#{login:016x}")
            }
        };
        Key::new(&account).unwrap_or_default()
    }

    /// Reads the file.
    pub(super) fn read(path: &Path) -> Result<Self, CredentialsError> {
        let text = std::fs::read(path).map_err(|source| CredentialsError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|problem| CredentialsError::Malformed {
            path: path.to_owned(),
            problem,
        })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        // The parser's own words could repeat a secret, so only the place is told.
        let file: File = serde_json::from_slice(text).map_err(|e| {
            format!(
                "it is no JSON object of texts (line {}, column {})",
                e.line(),
                e.column()
            )
        })?;
        let token_uri = file.token_uri.as_deref().unwrap_or(GOOGLE_TOKEN_URI);
        let token_uri = Url::parse(token_uri).map_err(|e| format!("token_uri is no URL: {e}"))?;
        let grant = match file.kind.as_deref() {
            Some("service_account") => service_account(file)?,
            Some("authorized_user") => authorized_user(file)?,
            Some(_) | None => {
                return Err("its type must be service_account or authorized_user".to_owned());
            }
        };
        Ok(Self { grant, token_uri })
    }
}

fn service_account(file: File) -> Result<Grant, String> {
    let pem = present("private_key", file.private_key)?;
    let key = EncodingKey::from_rsa_pem(pem.as_bytes())
        .map_err(|_| "private_key is no RSA key in PEM form: download the key again".to_owned())?;
    let email = present("client_email", file.client_email)?;
    Ok(Grant::ServiceAccount {
        email,
        key_id: file.private_key_id,
        key,
    })
}

fn authorized_user(file: File) -> Result<Grant, String> {
    Ok(Grant::AuthorizedUser {
        client_id: present("client_id", file.client_id)?,
        client_secret: present("client_secret", file.client_secret)?,
        refresh_token: present("refresh_token", file.refresh_token)?,
    })
}

fn present<T>(key: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("{key} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authorized_user_needs_three_texts_and_gets_googles_endpoint() {
        let file = br#"{"type":"authorized_user","client_id":"i","client_secret":"s","refresh_token":"r"}"#;
        let credentials = Credentials::parse(file).unwrap();
        assert_eq!(credentials.token_uri.as_str(), GOOGLE_TOKEN_URI);
        assert!(matches!(credentials.grant, Grant::AuthorizedUser { .. }));
    }

    #[test]
    fn errors_name_what_is_missing_and_no_secret() {
        let cases: [(&[u8], &str); 6] = [
            (b"nonsense s3cret", "no JSON"),
            (br#"{"installed":{"client_id":"s3cret"}}"#, "type must be"),
            (
                br#"{"type":"authorized_user","client_id":"i","client_secret":"s3cret"}"#,
                "refresh_token is missing",
            ),
            (
                br#"{"type":"service_account","client_email":"e"}"#,
                "private_key is missing",
            ),
            (
                br#"{"type":"service_account","client_email":"e","private_key":"s3cret"}"#,
                "no RSA key",
            ),
            (
                br#"{"type":"authorized_user","token_uri":"s3cret"}"#,
                "token_uri is no URL",
            ),
        ];
        for (file, expected) in cases {
            let problem = Credentials::parse(file).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
        let missing = Credentials::read(Path::new("/nowhere/key.json")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/key.json"));
    }
}
