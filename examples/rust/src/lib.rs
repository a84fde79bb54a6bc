//! Checks every page of a site, in two pipelines: [`Sites`] reads a site's sitemap and asks for batches of its pages;
//! [`Pages`] calls each page, no faster than the site allows, and stores what came of it.

mod pages;
mod sites;

use std::time::Duration;

use reqwest::{Client, Response, StatusCode, header};

pub use pages::{Checked, Pages};
pub use sites::{Site, Sites};

/// Longest wait for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// When a site says "too fast" and not for how long.
const PAUSE: Duration = Duration::from_secs(30);

fn client() -> Client {
    let client = Client::builder()
        .user_agent(concat!("page-check/", env!("CARGO_PKG_VERSION")))
        .timeout(ANSWER_LIMIT);
    client.build().expect("TLS is available")
}

/// For how long a site wants no more calls, if it says so.
fn pause(answer: &Response) -> Option<Duration> {
    let retry_after = answer.headers().get(header::RETRY_AFTER);
    let seconds = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let asked = seconds.map(Duration::from_secs);
    match answer.status() {
        StatusCode::TOO_MANY_REQUESTS => Some(asked.unwrap_or(PAUSE)),
        StatusCode::SERVICE_UNAVAILABLE => asked,
        _ => None,
    }
}
