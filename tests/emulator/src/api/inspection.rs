//! `urlInspection.index.inspect`: a verdict that depends on nothing but the address.

use jiff::Zoned;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::generator::{base_address, days_before, fnv};

/// One address in so many is not indexed.
const NOT_INDEXED: u64 = 5;
/// Crawls are at most this many days old.
const CRAWLED_WITHIN_DAYS: u64 = 30;

pub(super) fn inspect(
    body: &Value,
    now: &Zoned,
    may_read: impl Fn(&str) -> Result<(), ApiError>,
) -> Result<Value, ApiError> {
    let text = |name: &str| {
        let missing =
            || ApiError::invalid_parameter(&format!("Required parameter is missing: {name}"));
        body[name].as_str().ok_or_else(missing)
    };
    let site = text("siteUrl")?;
    may_read(site)?;
    let address = text("inspectionUrl")?;
    let base = base_address(site);
    if !address.starts_with(&base) {
        return Err(ApiError::bad_request(
            "The inspected URL does not belong to the property.",
        ));
    }
    let hash = fnv(address);
    let days = i32::try_from(hash % CRAWLED_WITHIN_DAYS).unwrap_or(0);
    let crawled = format!("{}T04:05:06Z", days_before(now.date(), days));
    let status = if hash.is_multiple_of(NOT_INDEXED) {
        json!({
            "verdict": "NEUTRAL",
            "coverageState": "Crawled - currently not indexed",
            "robotsTxtState": "ALLOWED",
            "indexingState": "INDEXING_ALLOWED",
            "lastCrawlTime": crawled,
            "pageFetchState": "SUCCESSFUL",
            "crawledAs": "MOBILE",
        })
    } else {
        json!({
            "verdict": "PASS",
            "coverageState": "Submitted and indexed",
            "robotsTxtState": "ALLOWED",
            "indexingState": "INDEXING_ALLOWED",
            "lastCrawlTime": crawled,
            "pageFetchState": "SUCCESSFUL",
            "googleCanonical": address,
            "userCanonical": address,
            "sitemap": [format!("{base}sitemap.xml")],
            "referringUrls": [base],
            "crawledAs": "MOBILE",
        })
    };
    Ok(json!({
        "inspectionResult": {
            "inspectionResultLink": format!("https://search.google.com/search-console/inspect?resource_id={site}"),
            "indexStatusResult": status,
            "mobileUsabilityResult": { "verdict": "VERDICT_UNSPECIFIED" },
        }
    }))
}
