//! A running emulator with a client and a token.

use std::fmt::Write as _;

use emulator::generator::Profile;
use emulator::{Config, Emulator, Permission, Running, Site};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};

pub(crate) const ALPHA: &str = "sc-domain:alpha.example";
pub(crate) const BETA: &str = "https://beta.example/";
pub(crate) const LARGE: &str = "sc-domain:large.example";
pub(crate) const UNVERIFIED: &str = "https://unverified.example/";
pub(crate) const DAY: &str = "2026-02-10";

pub(crate) struct Fixture {
    pub(crate) emulator: Running,
    pub(crate) client: Client,
    pub(crate) token: String,
}

/// An emulator without quotas, and a large site besides the usual ones.
pub(crate) async fn start() -> Fixture {
    start_with(Config::default().unlimited()).await
}

pub(crate) async fn start_with(mut config: Config) -> Fixture {
    config.sites.push(Site {
        url: LARGE.to_owned(),
        permission: Permission::SiteOwner,
        profile: Some(Profile::Large),
        users: Vec::new(),
    });
    let emulator = Emulator::start(config).await.unwrap();
    let token = emulator.issue_token("robot");
    Fixture {
        emulator,
        client: Client::new(),
        token,
    }
}

/// A query for one day.
pub(crate) fn day(dimensions: &[&str]) -> Value {
    json!({"startDate": DAY, "endDate": DAY, "dimensions": dimensions, "rowLimit": 25_000})
}

/// `base` with the members of `more`.
pub(crate) fn with(mut base: Value, more: &Value) -> Value {
    base.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    base
}

impl Fixture {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.emulator.url())
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path)).bearer_auth(&self.token)
    }

    pub(crate) fn query(&self, site: &str, body: &Value) -> RequestBuilder {
        let site: String = url_encoded(site);
        let path = format!("/webmasters/v3/sites/{site}/searchAnalytics/query?prettyPrint=false");
        self.client
            .post(self.url(&path))
            .bearer_auth(&self.token)
            .json(body)
    }

    /// Status and body of a query.
    pub(crate) async fn ask(&self, site: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.query(site, body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// The rows of a query that has to succeed.
    pub(crate) async fn rows(&self, site: &str, body: &Value) -> Vec<Value> {
        let (status, answer) = self.ask(site, body).await;
        assert_eq!(status, 200, "{answer}");
        answer["rows"].as_array().cloned().unwrap_or_default()
    }

    /// The truth, as lines of NDJSON.
    pub(crate) async fn truth(&self, query: &str) -> Vec<Value> {
        let answer = self
            .get(&format!("/__emu/truth?{query}"))
            .send()
            .await
            .unwrap();
        let text = answer.error_for_status().unwrap().text().await.unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub(crate) async fn stats(&self) -> Value {
        self.get("/__emu/stats")
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    pub(crate) fn faults(&self, rules: &Value) {
        self.emulator.configure(json!({ "faults": rules })).unwrap();
    }
}

/// A text as one segment of a path.
pub(crate) fn url_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// The first reason of an error body.
pub(crate) fn reason(body: &Value) -> &str {
    body["error"]["errors"][0]["reason"]
        .as_str()
        .unwrap_or_default()
}
