//! Calls to the API: pooled connections, compressed and lean answers, and a limit on everything.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::civil::Date;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::RETRY_AFTER;
use serde::{Deserialize, Serialize};
use shared::net::in_words;
use shared::search_console::{Dimension, SearchType};
use url::Url;

/// Most rows that Google puts into one page.
pub(super) const ROW_LIMIT: usize = 25_000;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may make no progress.
const READ_TIMEOUT: Duration = Duration::from_mins(1);
/// Idle connections live shorter than the servers' own limits, so that few requests meet a closed one.
const POOL_IDLE: Duration = Duration::from_secs(50);
/// Largest answer: 25,000 rows of two 2,000-byte texts stay below half of it.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Everything of a row but `ctr`, which is clicks / impressions.
const FIELDS: &str = "rows(keys,clicks,impressions,position),responseAggregationType,metadata";
/// A site is one path segment, `/` and `:` included.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The body of `searchanalytics.query`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Query {
    pub(super) start_date: Date,
    pub(super) end_date: Date,
    pub(super) dimensions: Vec<Dimension>,
    #[serde(rename = "type")]
    pub(super) search_type: SearchType,
    pub(super) data_state: DataState,
    pub(super) row_limit: usize,
    pub(super) start_row: usize,
}

/// Whether days are wanted that Google still changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DataState {
    Final,
    All,
}

/// One entry of `sites.list`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Site {
    pub(super) site_url: String,
    #[serde(default)]
    pub(super) permission_level: String,
}

impl Site {
    /// Whether this credential may read the property's data.
    pub(super) fn is_readable(&self) -> bool {
        self.permission_level != "siteUnverifiedUser"
    }
}

/// The body of `sites.list`; without any site the key is missing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sites {
    #[serde(default)]
    pub(super) site_entry: Vec<Site>,
}

/// A call that is made up, but not sent.
#[derive(Debug)]
pub(super) struct Call {
    url: Url,
    /// JSON; without one the call is a GET.
    body: Option<String>,
}

impl Call {
    /// The request as a person would want to see it in an error.
    pub(super) fn describe(&self) -> String {
        match &self.body {
            Some(body) => format!("POST {} {body}", self.url.path()),
            None => format!("GET {}", self.url.path()),
        }
    }
}

/// What came back, whatever the status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Bytes,
}

/// Where calls go.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    endpoint: Url,
}

/// The HTTP client that calls and tokens share.
pub(super) fn http() -> Result<reqwest::Client, reqwest::Error> {
    // Google compresses for those who say gzip in their name, too.
    let user_agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"), " (gzip)");
    reqwest::Client::builder()
        .user_agent(user_agent)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        .gzip(true)
        // A redirect would carry the token somewhere else.
        .redirect(reqwest::redirect::Policy::none())
        .build()
}

impl Client {
    pub(super) fn new(http: reqwest::Client, endpoint: Url) -> Self {
        Self { http, endpoint }
    }

    /// `searchanalytics.query`
    pub(super) fn query(&self, property: &str, query: &Query) -> Call {
        let site = utf8_percent_encode(property, SEGMENT);
        let mut url = self.url(&format!("webmasters/v3/sites/{site}/searchAnalytics/query"));
        url.query_pairs_mut().append_pair("fields", FIELDS);
        let body = serde_json::to_string(query).expect("a query has only texts, dates and numbers");
        Call {
            url,
            body: Some(body),
        }
    }

    /// `sites.list`
    pub(super) fn sites(&self) -> Call {
        Call {
            url: self.url("webmasters/v3/sites"),
            body: None,
        }
    }

    fn url(&self, path: &str) -> Url {
        let root = self.endpoint.as_str().trim_end_matches('/');
        let mut url = Url::parse(&format!("{root}/{path}"))
            .expect("a URL with an encoded path added stays one");
        url.query_pairs_mut()
            .append_pair("alt", "json")
            .append_pair("prettyPrint", "false");
        url
    }

    /// Sends a call and reads the whole answer. An error is a broken or late connection.
    pub(super) async fn send(
        &self,
        call: &Call,
        token: &str,
        within: Duration,
    ) -> Result<Answer, String> {
        tokio::time::timeout(within, self.exchange(call, token))
            .await
            .map_err(|_| format!("no answer within {} s", within.as_secs()))?
            .map_err(|e| in_words(&e.without_url()))
    }

    async fn exchange(&self, call: &Call, token: &str) -> Result<Answer, reqwest::Error> {
        let request = match &call.body {
            Some(body) => self
                .http
                .post(call.url.clone())
                .header("content-type", "application/json")
                .body(body.clone()),
            None => self.http.get(call.url.clone()),
        };
        let mut response = request.bearer_auth(token).send().await?;
        let status = response.status().as_u16();
        let seconds = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            // What is cut here is no JSON, and so becomes a transient fault.
            if body.len() > MAX_ANSWER_BYTES {
                break;
            }
        }
        Ok(Answer {
            status,
            retry_after: seconds.map(Duration::from_secs),
            body: body.freeze(),
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn a_query_goes_to_one_encoded_segment_and_says_what_it_wants() {
        let client = Client::new(http().unwrap(), Url::parse("http://127.0.0.1:1/").unwrap());
        let query = Query {
            start_date: date(2026, 2, 1),
            end_date: date(2026, 2, 1),
            dimensions: vec![Dimension::Page, Dimension::Query],
            search_type: SearchType::GoogleNews,
            data_state: DataState::Final,
            row_limit: ROW_LIMIT,
            start_row: 0,
        };
        let call = client.query("https://gamma.example/shop/", &query);
        assert_eq!(
            call.url.path(),
            "/webmasters/v3/sites/https%3A%2F%2Fgamma.example%2Fshop%2F/searchAnalytics/query"
        );
        assert!(call.url.query().unwrap().contains("prettyPrint=false"));
        assert_eq!(
            call.body.unwrap(),
            r#"{"startDate":"2026-02-01","endDate":"2026-02-01","dimensions":["page","query"],"type":"googleNews","dataState":"final","rowLimit":25000,"startRow":0}"#
        );
    }
}
