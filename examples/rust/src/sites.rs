//! The first stage: which pages there are.

use reqwest::Client;
use serde::Deserialize;
use url::Url;
use worker::{BatchContext, Handler, HandlerError, Output, async_trait};

use crate::{client, pause};

/// Pages of one batch: some seconds of work, so that little is repeated when a worker dies.
const PAGES_PER_BATCH: usize = 20;
/// Pages that a sitemap may have, says <https://www.sitemaps.org/protocol.html>.
const MAX_PAGES: usize = 50_000;

/// What is to be checked.
#[derive(Debug, Deserialize)]
pub struct Site {
    /// A sitemap as text, one URL a line.
    pub sitemap: Url,
}

/// Reads a sitemap and asks for batches of its pages.
#[derive(Debug, Clone)]
pub struct Sites {
    http: Client,
}

impl Default for Sites {
    fn default() -> Self {
        Self { http: client() }
    }
}

#[async_trait]
impl Handler for Sites {
    /// As `tidegate submit` makes it: an array of items.
    type Input = Vec<Site>;

    async fn handle(&self, sites: Vec<Site>, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let mut output = Output::default();
        for site in sites {
            let text = self.read(site.sitemap).await?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let (pages, others): (Vec<&str>, Vec<&str>) = lines.partition(|line| is_page(line));
            if pages.len() > MAX_PAGES {
                let problem = format!("{} pages, at most {MAX_PAGES} are allowed", pages.len());
                return Err(HandlerError::fail("large_sitemap", problem));
            }
            // They exist once this batch is completed, and exactly once, whatever happens to workers meanwhile.
            for batch in pages.chunks(PAGES_PER_BATCH) {
                output = output.follow_up("pages", &ctx.batch.key, &batch)?;
            }
            output = output
                .count("pages", pages.len() as u64)
                .count("lines_skipped", others.len() as u64);
        }
        Ok(output)
    }
}

impl Sites {
    /// What may pass by itself is tried again, with growing delays; what does not is given up.
    async fn read(&self, sitemap: Url) -> Result<String, HandlerError> {
        let unreachable = |error: reqwest::Error| HandlerError::retry(error.to_string());
        let answer = self.http.get(sitemap).send().await.map_err(unreachable)?;
        if let Some(pause) = pause(&answer) {
            return Err(HandlerError::throttled("the site asks for a pause", pause));
        }
        if answer.status().is_client_error() {
            let problem = format!("the sitemap is answered with {}", answer.status());
            return Err(HandlerError::fail("no_sitemap", problem));
        }
        let answer = answer.error_for_status().map_err(unreachable)?;
        answer.text().await.map_err(unreachable)
    }
}

fn is_page(line: &str) -> bool {
    Url::parse(line).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}
