//! Who may do what: tokens, their roles, and the layer that asks for them. A route names the role that it
//! needs where it is made ([`super::route`]); there is no way to make one without.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use secrecy::ExposeSecret;
use shared::config::{ApiConfig, ApiToken, ConfigError, Role};
use shared::fresh::FromFiles;

use super::problem::{Code, Problem};

/// The tokens that are accepted, hashed; those in files as they are now.
#[derive(Debug, Clone)]
pub struct Tokens(Arc<FromFiles<Vec<(blake3::Hash, Role)>, ConfigError>>);

impl Tokens {
    /// Those of the config. None: everybody may do everything, which config allows on loopback alone.
    pub fn new(config: &ApiConfig) -> Result<Self, ConfigError> {
        let (files, config) = (config.token_files(), config.clone());
        let hashed = |token: &ApiToken| {
            let hash = blake3::hash(token.secret.expose_secret().as_bytes());
            (hash, token.role)
        };
        let read = move || Ok(config.all_tokens()?.iter().map(hashed).collect());
        Ok(Self(Arc::new(FromFiles::new(files, read)?)))
    }

    /// The role of whoever sent these headers; `None` for a stranger.
    fn role(&self, headers: &HeaderMap) -> Option<Role> {
        let tokens = self.0.get();
        if tokens.is_empty() {
            return Some(Role::Operate);
        }
        let sent = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = sent.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        // Comparing hashes takes the same time wherever the tokens differ.
        let sent = blake3::hash(token.trim().as_bytes());
        let (_, role) = tokens.iter().find(|(known, _)| *known == sent)?;
        Some(*role)
    }
}

/// Lets a request pass whose token has at least this role.
pub(super) async fn require(
    State((tokens, needed)): State<(Tokens, Role)>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    match tokens.role(request.headers()) {
        Some(role) if role >= needed => Ok(next.run(request).await),
        Some(role) => Err(Problem::new(
            Code::Forbidden,
            format!(
                "the token's role is {}, this needs {}",
                role.as_str(),
                needed.as_str()
            ),
        )),
        None => Err(Problem::new(
            Code::Unauthorized,
            "send a token of the coordinator's [api] config as 'Authorization: Bearer …' (the CLI takes it from TIDEGATE_TOKEN)",
        )),
    }
}
