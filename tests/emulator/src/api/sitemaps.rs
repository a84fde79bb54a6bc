//! `sitemaps.list` and `sitemaps.get`: an index with two sitemaps per site, and none for some sites.

use jiff::Zoned;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::generator::{base_address, days_before, fnv};

/// One site in so many has no sitemaps, to show that the key is missing then.
const WITHOUT_SITEMAPS: u64 = 4;
const CHILDREN: [&str; 2] = ["sitemap-1.xml", "sitemap-2.xml"];
const INDEX: &str = "sitemap.xml";

fn sitemap(path: &str, is_index: bool, now: &Zoned) -> Value {
    let seen = format!("{}T06:30:00.000Z", days_before(now.date(), 2));
    let submitted = 100 + fnv(path) % 900;
    json!({
        "path": path,
        "lastSubmitted": seen,
        "isPending": false,
        "isSitemapsIndex": is_index,
        "type": "sitemap",
        "lastDownloaded": seen,
        // Google writes 64-bit numbers as texts.
        "warnings": "0",
        "errors": "0",
        "contents": [{ "type": "web", "submitted": submitted.to_string(), "indexed": "0" }],
    })
}

fn all(site: &str, now: &Zoned) -> Vec<Value> {
    if fnv(site).is_multiple_of(WITHOUT_SITEMAPS) {
        return Vec::new();
    }
    let base = base_address(site);
    let children = CHILDREN
        .iter()
        .map(|name| sitemap(&format!("{base}{name}"), false, now));
    std::iter::once(sitemap(&format!("{base}{INDEX}"), true, now))
        .chain(children)
        .collect()
}

/// All sitemaps, or those below an index.
pub(super) fn list(site: &str, index: Option<&str>, now: &Zoned) -> Value {
    let mut sitemaps = all(site, now);
    if let Some(index) = index {
        let is_known = sitemaps.first().is_some_and(|first| first["path"] == index);
        sitemaps.retain(|sitemap| is_known && sitemap["isSitemapsIndex"] == false);
    }
    if sitemaps.is_empty() {
        json!({})
    } else {
        json!({ "sitemap": sitemaps })
    }
}

pub(super) fn get(site: &str, path: &str, now: &Zoned) -> Result<Value, ApiError> {
    all(site, now)
        .into_iter()
        .find(|sitemap| sitemap["path"] == path)
        .ok_or_else(ApiError::not_found)
}
