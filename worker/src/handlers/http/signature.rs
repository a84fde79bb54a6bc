//! Proves to the receiver who sent a request, and that nobody changed it.
//!
//! - `x-tidegate-timestamp`: seconds since 1970. A receiver refuses what is older than a few minutes.
//! - `x-tidegate-signature`: `v1=` and, in hex, HMAC-SHA256 with `secret` over the timestamp, a full stop, and
//!   the body as it was sent.
//! - `x-tidegate-signature-key`: the pipeline's `secret_id`. A receiver that knows the old and the new secret by
//!   their ids lets workers change over one by one.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use shared::config::PipelineConfig;

const HEADER_TIMESTAMP: &str = "x-tidegate-timestamp";
const HEADER_SIGNATURE: &str = "x-tidegate-signature";
const HEADER_KEY_ID: &str = "x-tidegate-signature-key";

/// Signs requests.
pub(super) struct Signing {
    secret: SecretString,
    id: HeaderValue,
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signing")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Signing {
    /// As the config says; none without a secret.
    pub(super) fn new(config: &PipelineConfig) -> Option<Self> {
        let secret = config.secret.clone()?;
        let id = HeaderValue::from_str(&config.secret_id)
            .expect("the config checked that it is visible ASCII");
        Some(Self { secret, id })
    }

    pub(super) fn headers(&self, now: Timestamp, body: &[u8]) -> HeaderMap {
        let signature = sign(self.secret.expose_secret(), now, body);
        let signature = HeaderValue::from_str(&signature).expect("hex is visible ASCII");
        HeaderMap::from_iter(
            [
                (HEADER_TIMESTAMP, now.as_second().into()),
                (HEADER_KEY_ID, self.id.clone()),
                (HEADER_SIGNATURE, signature),
            ]
            .map(|(name, value)| (reqwest::header::HeaderName::from_static(name), value)),
        )
    }
}

fn sign(secret: &str, now: Timestamp, body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{}.", now.as_second()).as_bytes());
    mac.update(body);
    format!("v1={}", hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with `printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef`.
    #[test]
    fn signs_as_openssl_does() {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!(
            sign("0123456789abcdef", at, br#"{"a":1}"#),
            "v1=9eb18f493f8ec135d9eb2dad817c369bb4e9cbfa818657897a7437c1cd8c3a23"
        );
    }
}
