//! One call: the run's final JSON, sent to an address that was checked.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use sha2::Sha256;
use shared::config::{WebhookSecret, WebhooksConfig};
use shared::net::{in_words, refused_address};

use super::receivers::{Receivers, WebhookRefused};
use super::verdict::Answer;
use crate::ledger::Webhook;
use crate::run::Run;

/// What happened, for whoever dispatches by it: `run.completed` or `run.cancelled`.
const HEADER_EVENT: &str = "x-tidegate-event";
/// The same for every call about one end of one run.
const HEADER_IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Names that standardwebhooks.com gives: who, when, and the signature over both and the body.
const HEADER_ID: &str = "webhook-id";
const HEADER_TIMESTAMP: &str = "webhook-timestamp";
const HEADER_SIGNATURE: &str = "webhook-signature";

/// HTTP cannot be spoken: no certificates to trust, for instance.
#[derive(Debug, thiserror::Error)]
#[error("webhooks: {0}")]
pub struct ClientError(String);

/// Makes calls.
pub(super) struct Caller {
    http: reqwest::Client,
    receivers: Receivers,
    secret: Option<WebhookSecret>,
}

impl Caller {
    pub(super) fn new(config: &WebhooksConfig) -> Result<Self, ClientError> {
        let receivers = Receivers::new(config);
        let http = reqwest::Client::builder()
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .timeout(config.timeout.get())
            // Neither leads anywhere that was not checked.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Arc::new(receivers.addresses))
            .build()
            .map_err(|error| ClientError(in_words(&error)))?;
        Ok(Self {
            http,
            receivers,
            secret: config.secret.clone(),
        })
    }

    /// Tells the receiver how the run ended. What it answers beyond a status line and headers is not read.
    pub(super) async fn call(&self, webhook: &Webhook, now: Timestamp) -> Answer {
        let url = match self.receivers.read(&webhook.url) {
            Ok(url) => url,
            Err(refused) => return Answer::Refused(refused.to_string()),
        };
        let id = message_id(&webhook.run);
        let body = serde_json::to_vec(&webhook.run).expect("a run serialises");
        let mut request = self
            .http
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(HEADER_IDEMPOTENCY_KEY, &id)
            .header(HEADER_EVENT, format!("run.{}", webhook.run.state))
            .header(HEADER_ID, &id)
            .header(HEADER_TIMESTAMP, now.as_second());
        if let Some(secret) = &self.secret {
            request = request.header(HEADER_SIGNATURE, signature(secret, &id, now, &body));
        }
        match request.body(body).send().await {
            Ok(response) => {
                let retry_after = response.headers().get(RETRY_AFTER);
                let retry_after = retry_after.and_then(|value| value.to_str().ok());
                Answer::Status(response.status().as_u16(), retry_after.map(str::to_owned))
            }
            Err(error) => match refused_address(&error).map(WebhookRefused::from) {
                Some(refused) => Answer::Refused(refused.to_string()),
                None => Answer::None(in_words(&error.without_url())),
            },
        }
    }
}

/// Stays the same however often a call is repeated. A run that ends again, after a redrive of its dead
/// batches, is something new.
fn message_id(run: &Run) -> String {
    match run.finished_at {
        Some(at) => format!("{}-{}", run.run, at.as_millisecond()),
        None => run.run.to_string(),
    }
}

/// `v1,` and the base64 of HMAC-SHA256 over id, time and body, joined by full stops.
fn signature(secret: &WebhookSecret, id: &str, now: Timestamp, body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.expose()).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{}.", now.as_second()).as_bytes());
    mac.update(body);
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference implementations.
    #[test]
    fn signs_as_the_standard_says() {
        let secret =
            WebhookSecret::try_from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()).unwrap();
        let at = Timestamp::from_second(1_614_265_330).unwrap();
        let signed = signature(
            &secret,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            at,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
