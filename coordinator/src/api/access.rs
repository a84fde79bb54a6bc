//! Who may do what: tokens, their roles, and the layer that asks for them. A route names the role that it
//! needs where it is made ([`super::route`]); there is no way to make one without.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use secrecy::ExposeSecret;
use shared::config::{ApiToken, Role};

use super::problem::{Code, Problem};

/// The tokens that are accepted, hashed.
#[derive(Debug, Clone, Default)]
pub struct Tokens(Vec<(blake3::Hash, Role)>);

impl Tokens {
    /// These. None: everybody may do everything, which config allows on loopback alone.
    #[must_use]
    pub fn new(tokens: &[ApiToken]) -> Self {
        let hashed = |token: &ApiToken| {
            let hash = blake3::hash(token.secret.expose_secret().as_bytes());
            (hash, token.role)
        };
        Self(tokens.iter().map(hashed).collect())
    }

    /// The role of whoever sent these headers; `None` for a stranger.
    fn role(&self, headers: &HeaderMap) -> Option<Role> {
        if self.0.is_empty() {
            return Some(Role::Operate);
        }
        let sent = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = sent.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        // Comparing hashes takes the same time wherever the tokens differ.
        let sent = blake3::hash(token.trim().as_bytes());
        let (_, role) = self.0.iter().find(|(known, _)| *known == sent)?;
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
