//! `handler = "http"`: a batch is one POST to `url`.
//!
//! **The request** has a JSON body, the same object that a long-lived command gets as a line:
//!
//! ```json
//! {"batch": "0197…", "run": "0197…", "pipeline": "thumbs", "key": "tenant", "attempt": 1, "deadline_ms": 300000, "payload": …}
//! ```
//!
//! and these headers: `idempotency-key`, the batch's id, the same for every attempt; `x-tidegate-batch`, `-run`,
//! `-pipeline`, `-attempt`, and `-key` (percent-encoded UTF-8); `authorization` where `token` is set;
//! and where `secret` is set, what [`signature`] says.
//!
//! **The answer** says by its status what becomes of the batch ([`status`] has the table), and with 2xx by its
//! content what its rows are ([`body`]). It is read up to 64 MiB, counted after decompression.
//!
//! Limits of the pipeline's configuration are asked for one call before each request; a throttled one slows an
//! adaptive limit down.
//!
//! What returns takes effect once, but a request can arrive more than once (a worker died, an answer was lost):
//! an endpoint with effects of its own remembers `idempotency-key`.
//!
//! Redirects are not followed, proxies of the environment not used, and names not trusted: the address that
//! was checked is the one that is connected to ([`shared::net`]).

mod body;
mod client;
mod retry_after;
mod signature;
mod status;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{RequestBuilder, Response};
use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;
use shared::config::{ConfigError, PipelineConfig, Span};
use shared::name::PipelineName;
use shared::net::{in_words, refused_address};
use url::Url;

use self::signature::Signing;
use self::status::Meaning;
use super::leave::Leave;
use super::stop::{Stop, stop_wanted};
use super::wire::Request;
use crate::collect::RowForm;
use crate::handler::{BatchContext, Handler, HandlerError, Output};

/// The same for every attempt of a batch.
const HEADER_IDEMPOTENCY_KEY: &str = "idempotency-key";
const HEADER_BATCH: &str = "x-tidegate-batch";
const HEADER_RUN: &str = "x-tidegate-run";
const HEADER_PIPELINE: &str = "x-tidegate-pipeline";
const HEADER_KEY: &str = "x-tidegate-key";
const HEADER_ATTEMPT: &str = "x-tidegate-attempt";
/// A header holds visible ASCII for sure; the percent sign is encoded so that decoding gives the key again.
const NOT_IN_HEADERS: &AsciiSet = &CONTROLS.add(b'%').add(b' ');

/// Posts batches.
#[derive(Debug)]
pub struct Http {
    client: reqwest::Client,
    url: Url,
    token: Option<SecretString>,
    signing: Option<Signing>,
    leave: Leave,
    deadline: Span,
    rows: Arc<dyn RowForm>,
}

impl Http {
    /// Prepares calls of the pipeline's URL, whose answers have rows in this form.
    pub fn new(
        pipeline: &PipelineName,
        config: &PipelineConfig,
        rows: Arc<dyn RowForm>,
    ) -> Result<Self, ConfigError> {
        let wrong = |problem: String| ConfigError::Wrong {
            key: format!("pipelines.{pipeline}.url"),
            problem,
        };
        let url = config
            .url
            .clone()
            .ok_or_else(|| wrong("is missing".to_owned()))?;
        let client = client::new(&url, config)
            .map_err(|error| wrong(format!("cannot be called: {}", in_words(&error))))?;
        Ok(Self {
            client,
            url,
            token: config.token.clone(),
            signing: Signing::new(config),
            leave: Leave::under(&config.limits),
            deadline: config.deadline,
            rows,
        })
    }

    fn request(&self, ctx: &BatchContext) -> RequestBuilder {
        let batch = &ctx.batch;
        let body = Request::new(ctx).into_json();
        let key = utf8_percent_encode(batch.key.as_str(), NOT_IN_HEADERS);
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, application/x-ndjson")
            .header(HEADER_IDEMPOTENCY_KEY, batch.id.to_string())
            .header(HEADER_BATCH, batch.id.to_string())
            .header(HEADER_RUN, batch.run.to_string())
            .header(HEADER_PIPELINE, batch.pipeline.as_str())
            .header(HEADER_KEY, key.to_string())
            .header(HEADER_ATTEMPT, batch.attempt.number());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        if let Some(signing) = &self.signing {
            request = request.headers(signing.headers(Timestamp::now(), body.as_bytes()));
        }
        request.body(body)
    }

    fn given_up(&self, stop: Stop) -> HandlerError {
        HandlerError::retry(match stop {
            Stop::DeadlineReached => {
                format!("no answer until the deadline, after {}", self.deadline)
            }
            Stop::CalledOff => "the request was given up: the attempt was called off".to_owned(),
        })
    }

    async fn exchange(&self, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let response = self.request(ctx).send().await.map_err(not_answered)?;
        match status::meaning(response.status(), asked_delay(&response)) {
            Meaning::Rows => body::read(response, &*self.rows).await,
            Meaning::NoRows => Ok(Output::default()),
            Meaning::Error(error) => Err(body::explained(error, response).await),
        }
    }
}

#[async_trait]
impl Handler for Http {
    type Input = Box<RawValue>;

    async fn handle(&self, _: Self::Input, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let permit = self.leave.ask(ctx).await?;
        let result = tokio::select! {
            answered = self.exchange(ctx) => answered,
            stop = stop_wanted(ctx) => Err(self.given_up(stop)),
        };
        self.leave.tell(ctx, permit, &result);
        result
    }
}

/// No status line came back.
fn not_answered(error: reqwest::Error) -> HandlerError {
    match refused_address(&error) {
        Some(private) => HandlerError::fail(
            "private_address",
            format!("{private}: set allow_private = true if it is meant to be called"),
        ),
        None => HandlerError::retry(in_words(&error.without_url())),
    }
}

fn asked_delay(response: &Response) -> Option<std::time::Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    retry_after::delay(text, Timestamp::now())
}

#[cfg(test)]
mod tests;
