//! `POST /token`: who asks, and why they are refused.

use std::collections::HashMap;

use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde::Deserialize;

use super::{GOOGLE_TOKEN_URI, READ_WRITE_SCOPE};
use crate::config::{Config, ServiceAccount};

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// An assertion may live this long.
const LONGEST_LIFE_S: i64 = 3600;
/// How far the asker's clock may be off.
const CLOCK_SKEW_S: i64 = 300;
const BAD_TIMES: &str = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable \
                         timeframe. Check your iat and exp values in the JWT claim.";
const BAD_SIGNATURE: &str = "Invalid JWT Signature.";
const REVOKED: &str = "Token has been expired or revoked.";
/// The refresh token that is refused.
const REVOKED_REFRESH_TOKEN: &str = "revoked";

/// Why no token is given: HTTP status, `error` and `error_description`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) error: &'static str,
    pub(crate) description: &'static str,
}

const fn refuse(status: u16, error: &'static str, description: &'static str) -> Refusal {
    Refusal {
        status,
        error,
        description,
    }
}

const fn invalid_grant(description: &'static str) -> Refusal {
    refuse(400, "invalid_grant", description)
}

const fn invalid_request(description: &'static str) -> Refusal {
    refuse(400, "invalid_request", description)
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    aud: String,
    iat: i64,
    exp: i64,
}

/// The user whom a token request speaks for. `own_uri` is this endpoint's own address.
pub(crate) fn user(
    config: &Config,
    form: &[u8],
    own_uri: &str,
    now_s: i64,
) -> Result<String, Refusal> {
    let form: HashMap<String, String> = form_urlencoded::parse(form).into_owned().collect();
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    match field("grant_type") {
        JWT_BEARER => service_account(config, field("assertion"), own_uri, now_s),
        "refresh_token" => oauth_user(config, field),
        "" => Err(invalid_request("Required parameter is missing: grant_type")),
        _ => Err(refuse(400, "unsupported_grant_type", "Invalid grant_type")),
    }
}

fn service_account(
    config: &Config,
    assertion: &str,
    own_uri: &str,
    now_s: i64,
) -> Result<String, Refusal> {
    if assertion.is_empty() {
        return Err(invalid_request("Required parameter is missing: assertion"));
    }
    let claims =
        claims(assertion).ok_or(invalid_grant("Invalid JWT: Failed to parse the assertion."))?;
    if !config.insecure_accept {
        let known = config
            .service_accounts
            .iter()
            .find(|account| account.email == claims.iss);
        let account = known.ok_or(invalid_grant("Invalid grant: account not found"))?;
        if !is_signed_by(assertion, account) {
            return Err(invalid_grant(BAD_SIGNATURE));
        }
    }
    if claims.aud != GOOGLE_TOKEN_URI && claims.aud != own_uri {
        return Err(invalid_grant("Invalid JWT: Failed audience check."));
    }
    let lives = claims.exp.saturating_sub(claims.iat);
    if !(1..=LONGEST_LIFE_S).contains(&lives)
        || now_s.abs_diff(claims.iat) > CLOCK_SKEW_S.unsigned_abs()
    {
        return Err(invalid_grant(BAD_TIMES));
    }
    if !claims.scope.contains("webmasters") {
        return Err(refuse(
            400,
            "invalid_scope",
            "Invalid OAuth scope or ID token audience provided.",
        ));
    }
    Ok(claims.iss)
}

fn claims(assertion: &str) -> Option<Claims> {
    use base64::Engine as _;
    let payload = assertion.split('.').nth(1)?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload.trim_end_matches('='))
        .ok()?;
    serde_json::from_slice(&json).ok()
}

fn is_signed_by(assertion: &str, account: &ServiceAccount) -> bool {
    let Some((message, signature)) = assertion.rsplit_once('.') else {
        return false;
    };
    let is_rs256 =
        jsonwebtoken::decode_header(assertion).is_ok_and(|header| header.alg == Algorithm::RS256);
    let key = DecodingKey::from_rsa_pem(account.public_key.as_bytes());
    is_rs256
        && key.is_ok_and(|key| {
            crypto::verify(signature, message.as_bytes(), &key, Algorithm::RS256).unwrap_or(false)
        })
}

fn oauth_user<'a>(config: &Config, field: impl Fn(&str) -> &'a str) -> Result<String, Refusal> {
    let known = config.oauth_clients.iter().any(|client| {
        client.client_id == field("client_id") && client.client_secret == field("client_secret")
    });
    if !known {
        return Err(refuse(
            401,
            "invalid_client",
            "The OAuth client was not found.",
        ));
    }
    // Only what was granted may be asked for again.
    if field("scope")
        .split_whitespace()
        .any(|scope| !scope.starts_with(READ_WRITE_SCOPE))
    {
        return Err(refuse(400, "invalid_scope", "Bad Request"));
    }
    match field("refresh_token") {
        "" => Err(invalid_request("Missing required parameter: refresh_token")),
        REVOKED_REFRESH_TOKEN => Err(invalid_grant(REVOKED)),
        token => Ok(format!("oauth-user-of-{token}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{READ_ONLY_SCOPE, TestAccount};
    use jsonwebtoken::{EncodingKey, Header};

    const NOW: i64 = 1_800_000_000;
    const OWN: &str = "http://127.0.0.1:1/token";

    fn ask(
        config: &Config,
        key: &TestAccount,
        change: &serde_json::Value,
    ) -> Result<String, Refusal> {
        let mut claims = serde_json::json!({
            "iss": key.email(), "scope": READ_ONLY_SCOPE, "aud": GOOGLE_TOKEN_URI, "iat": NOW, "exp": NOW + 3600,
        });
        claims
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let signing = EncodingKey::from_rsa_pem(key.private_key().as_bytes()).unwrap();
        let jwt = jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &signing).unwrap();
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("grant_type", JWT_BEARER), ("assertion", &jwt)])
            .finish();
        user(config, form.as_bytes(), OWN, NOW)
    }

    #[test]
    fn assertions_are_verified() {
        let key = TestAccount::generate("robot@p.example").unwrap();
        let other = TestAccount::generate("robot@p.example").unwrap();
        let config = Config {
            service_accounts: vec![key.registration()],
            ..Config::default()
        };
        let ask = |key, change: serde_json::Value| ask(&config, key, &change);
        assert_eq!(
            ask(&key, serde_json::json!({})),
            Ok("robot@p.example".to_owned())
        );
        assert_eq!(
            ask(&key, serde_json::json!({"aud": OWN})),
            Ok("robot@p.example".to_owned())
        );
        let description =
            |result: Result<String, Refusal>| result.map_err(|refusal| refusal.description);
        assert_eq!(
            description(ask(&other, serde_json::json!({}))),
            Err(BAD_SIGNATURE)
        );
        for times in [
            serde_json::json!({"exp": NOW + 3601}),
            serde_json::json!({"iat": NOW - 301, "exp": NOW}),
            serde_json::json!({"iat": NOW + 301, "exp": NOW + 400}),
        ] {
            assert_eq!(description(ask(&key, times)), Err(BAD_TIMES));
        }
        let error = |change| ask(&key, change).map_err(|refusal| refusal.error);
        assert_eq!(
            error(serde_json::json!({"scope": "email"})),
            Err("invalid_scope")
        );
        assert_eq!(
            error(serde_json::json!({"iss": "x@y.example"})),
            Err("invalid_grant")
        );
        assert_eq!(
            error(serde_json::json!({"aud": "https://x.example/token"})),
            Err("invalid_grant")
        );
    }

    #[test]
    fn insecure_accept_takes_any_signature() {
        let key = TestAccount::generate("robot@p.example").unwrap();
        let config = Config {
            insecure_accept: true,
            ..Config::default()
        };
        assert_eq!(
            ask(&config, &key, &serde_json::json!({})),
            Ok("robot@p.example".to_owned())
        );
    }

    #[test]
    fn refresh_tokens_work_unless_revoked() {
        let client = Config::default().oauth_clients.remove(0);
        let ask = |id: &str, token: &str| {
            let form = form_urlencoded::Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", id)
                .append_pair("client_secret", &client.client_secret)
                .append_pair("refresh_token", token)
                .finish();
            user(&Config::default(), form.as_bytes(), OWN, NOW)
        };
        assert_eq!(
            ask(&client.client_id, "1//abc"),
            Ok("oauth-user-of-1//abc".to_owned())
        );
        assert_eq!(
            ask(&client.client_id, "revoked"),
            Err(invalid_grant(REVOKED))
        );
        assert_eq!(
            ask("other", "1//abc").map_err(|refusal| refusal.status),
            Err(401)
        );
    }

    #[test]
    fn other_grants_are_unsupported() {
        let refusal = user(&Config::default(), b"grant_type=password", OWN, NOW).unwrap_err();
        assert_eq!(
            (refusal.status, refusal.error),
            (400, "unsupported_grant_type")
        );
    }
}
