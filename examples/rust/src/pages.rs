//! The second stage: what a visitor of each page gets.

use std::time::Instant;

use reqwest::Client;
use serde::{Deserialize, Serialize};
use url::Url;
use worker::{BatchContext, Handler, HandlerError, LimitName, Output, async_trait};

use crate::{client, pause};

/// Calls each page of a batch, and has a row of each.
#[derive(Debug, Clone)]
pub struct Pages {
    http: Client,
    limit: LimitName,
}

/// What came of one page: a row.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// As it stands in the sitemap.
    pub url: Url,
    /// The answer's status, after redirects.
    pub status: Option<u16>,
    /// Bytes of the answer's body.
    pub bytes: usize,
    /// How long it took.
    pub took_ms: u128,
    /// Why there was no answer.
    pub error: Option<String>,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            http: client(),
            limit: LimitName::new("page-check").expect("the name is well-formed"),
        }
    }
}

#[async_trait]
impl Handler for Pages {
    type Input = Vec<Url>;

    async fn handle(&self, urls: Vec<Url>, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let mut rows = Vec::with_capacity(urls.len());
        for url in urls {
            rows.push(self.check(url, ctx).await?);
        }
        let broken = rows.iter().filter(|row| row.is_broken()).count();
        Ok(Output::rows(rows)?.count("broken", broken as u64))
    }
}

impl Pages {
    /// A page that cannot be reached is a result. Only what keeps us from finding out is an error.
    async fn check(&self, url: Url, ctx: &BatchContext) -> Result<Checked, HandlerError> {
        // Waits for its turn, over all workers, and ends with an error when the attempt is cancelled.
        let permit = ctx.permit(&self.limit, 1).await?;
        let started = Instant::now();
        let mut checked = Checked {
            url: url.clone(),
            status: None,
            bytes: 0,
            took_ms: 0,
            error: None,
        };
        match self.http.get(url).send().await {
            Ok(answer) => {
                if let Some(pause) = pause(&answer) {
                    ctx.too_fast(&self.limit, permit, Some(pause));
                    return Err(HandlerError::throttled("the site asks for a pause", pause));
                }
                ctx.accepted(&self.limit, permit);
                checked.status = Some(answer.status().as_u16());
                match body(answer).await {
                    Ok(bytes) => checked.bytes = bytes,
                    Err(error) => checked.error = Some(error.to_string()),
                }
            }
            Err(error) => checked.error = Some(error.to_string()),
        }
        checked.took_ms = started.elapsed().as_millis();
        if checked.is_broken() {
            // The line says by itself whose batch it is.
            tracing::info!(url = %checked.url, status = checked.status, "a broken page");
        }
        Ok(checked)
    }
}

impl Checked {
    fn is_broken(&self) -> bool {
        self.error.is_some() || self.status.is_none_or(|status| status >= 400)
    }
}

/// Its length. A body is counted, not kept.
async fn body(mut answer: reqwest::Response) -> Result<usize, reqwest::Error> {
    let mut bytes = 0;
    while let Some(chunk) = answer.chunk().await? {
        bytes += chunk.len();
    }
    Ok(bytes)
}
