//! Access tokens: cached, refreshed by one caller at a time before they expire, replaced when refused.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::credentials::{Credentials, GOOGLE_TOKEN_URI, Grant};

const SCOPE: &str = "https://www.googleapis.com/auth/webmasters.readonly";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// Longest life of an assertion that Google accepts.
const ASSERTION_LIFE: Duration = Duration::from_hours(1);
/// How long the token endpoint may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What a token is taken to live when the answer does not say.
const DEFAULT_LIFE_S: u64 = 3600;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    /// It may work in a moment.
    #[error("the token endpoint did not answer properly: {0}")]
    Transient(String),
    /// The grant is revoked or expired: a person must log in again.
    #[error("Google no longer accepts these credentials: {0}")]
    ReauthRequired(String),
    /// The credentials themselves are wrong.
    #[error("Google refuses these credentials: {0}")]
    Refused(String),
}

/// One access token.
#[derive(Debug)]
pub(super) struct Token {
    secret: SecretString,
    /// From here on the next caller fetches a new one: after 80 % of its life.
    refresh_at: Instant,
    expires_at: Instant,
}

impl Token {
    pub(super) fn expose(&self) -> &str {
        self.secret.expose_secret()
    }
}

/// The tokens of one credentials file.
#[derive(Debug)]
pub(super) struct TokenSource {
    credentials: Credentials,
    http: reqwest::Client,
    cached: Mutex<Option<Arc<Token>>>,
    /// Held while a token is fetched, so that many callers cost one request.
    refreshing: tokio::sync::Mutex<()>,
}

impl TokenSource {
    pub(super) fn new(credentials: Credentials, http: reqwest::Client) -> Self {
        Self {
            credentials,
            http,
            cached: Mutex::new(None),
            refreshing: tokio::sync::Mutex::new(()),
        }
    }

    /// A token to call with. Only a caller without any valid token waits for another's refresh.
    pub(super) async fn current(&self) -> Result<Arc<Token>, TokenError> {
        let cached = self.cached();
        let Some(token) = cached.filter(|token| Instant::now() < token.expires_at) else {
            let _one_at_a_time = self.refreshing.lock().await;
            return match self
                .cached()
                .filter(|token| Instant::now() < token.expires_at)
            {
                Some(fetched_meanwhile) => Ok(fetched_meanwhile),
                None => self.fetch().await,
            };
        };
        if Instant::now() < token.refresh_at {
            return Ok(token);
        }
        let Ok(_one_at_a_time) = self.refreshing.try_lock() else {
            return Ok(token);
        };
        match self.fetch().await {
            // The old one still works; the next caller tries again.
            Err(TokenError::Transient(_)) => Ok(token),
            other => other,
        }
    }

    /// A token instead of one that was refused, unless somebody replaced it already.
    pub(super) async fn replace(&self, refused: &Arc<Token>) -> Result<Arc<Token>, TokenError> {
        let _one_at_a_time = self.refreshing.lock().await;
        match self.cached() {
            Some(token) if !Arc::ptr_eq(&token, refused) && Instant::now() < token.refresh_at => {
                Ok(token)
            }
            _ => self.fetch().await,
        }
    }

    // A poisoned lock is fine: the value is replaced whole.
    fn cached(&self) -> Option<Arc<Token>> {
        self.cached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn fetch(&self) -> Result<Arc<Token>, TokenError> {
        let asked_at = Instant::now();
        let request = self
            .http
            .post(self.credentials.token_uri.clone())
            .timeout(TIMEOUT);
        let request = match &self.credentials.grant {
            Grant::ServiceAccount { email, key_id, key } => {
                let assertion = assertion(email, key_id.clone(), key)?;
                request.form(&[("grant_type", JWT_BEARER), ("assertion", &assertion)])
            }
            // No scope: the grant has its own, and naming another is refused.
            Grant::AuthorizedUser {
                client_id,
                client_secret,
                refresh_token,
            } => request.form(&[
                ("grant_type", "refresh_token"),
                ("client_id", client_id),
                ("client_secret", client_secret.expose_secret()),
                ("refresh_token", refresh_token.expose_secret()),
            ]),
        };
        let transient = |e: reqwest::Error| TokenError::Transient(e.to_string());
        let answer = request.send().await.map_err(transient)?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(transient)?;
        let token = Arc::new(read_answer(status, &body, asked_at)?);
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
        Ok(token)
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'static str,
    aud: &'static str,
    iat: u64,
    exp: u64,
}

fn assertion(
    email: &str,
    key_id: Option<String>,
    key: &jsonwebtoken::EncodingKey,
) -> Result<String, TokenError> {
    let iat = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let exp = iat + ASSERTION_LIFE.as_secs();
    let claims = Claims {
        iss: email,
        scope: SCOPE,
        aud: GOOGLE_TOKEN_URI,
        iat,
        exp,
    };
    let header = Header {
        kid: key_id,
        ..Header::new(Algorithm::RS256)
    };
    jsonwebtoken::encode(&header, &claims, key)
        .map_err(|_| TokenError::Refused("the private key cannot sign".to_owned()))
}

#[derive(Deserialize)]
struct Granted {
    access_token: SecretString,
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct Denied {
    error: String,
    error_description: Option<String>,
}

fn read_answer(status: u16, body: &[u8], asked_at: Instant) -> Result<Token, TokenError> {
    if status == 200 {
        // The body holds the token: nothing of it goes into an error.
        let granted: Granted = serde_json::from_slice(body)
            .map_err(|_| TokenError::Transient("HTTP 200 without a token".to_owned()))?;
        let life = Duration::from_secs(granted.expires_in.unwrap_or(DEFAULT_LIFE_S));
        return Ok(Token {
            secret: granted.access_token,
            refresh_at: asked_at + life.mul_f64(0.8),
            expires_at: asked_at + life,
        });
    }
    let denied: Option<Denied> = serde_json::from_slice(body).ok();
    match denied {
        Some(denied) if (400..500).contains(&status) && status != 429 => {
            let words = match denied.error_description {
                Some(description) => format!("{}: {description}", denied.error),
                None => denied.error.clone(),
            };
            if denied.error == "invalid_grant" {
                Err(TokenError::ReauthRequired(words))
            } else {
                Err(TokenError::Refused(words))
            }
        }
        _ => Err(TokenError::Transient(format!("HTTP {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &str) -> Result<Token, TokenError> {
        read_answer(status, body.as_bytes(), Instant::now())
    }

    #[test]
    fn a_token_is_refreshed_at_80_percent_of_its_life() {
        let asked_at = Instant::now();
        let token = read_answer(200, br#"{"access_token":"t","expires_in":60}"#, asked_at).unwrap();
        assert_eq!(token.refresh_at - asked_at, Duration::from_secs(48));
        assert_eq!(token.expose(), "t");
    }

    #[test]
    fn refusals_are_told_apart() {
        let expired =
            r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#;
        assert!(matches!(
            read(400, expired),
            Err(TokenError::ReauthRequired(_))
        ));
        assert!(matches!(
            read(401, r#"{"error":"invalid_client"}"#),
            Err(TokenError::Refused(_))
        ));
        assert!(matches!(
            read(500, r#"{"error":"internal_failure"}"#),
            Err(TokenError::Transient(_))
        ));
        assert!(matches!(read(400, "<html>"), Err(TokenError::Transient(_))));
        let error = read(200, r#"{"access_tokem":"s3cret"}"#).unwrap_err();
        assert!(!error.to_string().contains("s3cret"));
    }
}
