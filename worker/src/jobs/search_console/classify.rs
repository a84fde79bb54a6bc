//! What an HTTP answer means. Google answers most quota errors with 403, so the status alone says little:
//! the order of these tests is the meaning (`ERR-2` in the project's notes on the API).

use serde::Deserialize;

/// What an answer that is no success means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Class {
    /// A fault on the way or at Google's side: the same call may work in a moment.
    Transient,
    /// The access token is not accepted.
    Unauthorized,
    /// The API is not enabled in the credential's project.
    NotEnabled,
    /// Too many requests in a short time.
    Rate,
    /// Too expensive requests in ten minutes or in a day.
    Load,
    /// The day's quota is used up.
    Daily,
    /// This credential may not read this property.
    Permission,
    /// The request itself is wrong, and would be again.
    BadRequest,
}

/// The parts of Google's error body that matter. Everything may be missing or null.
#[derive(Debug, Default, Deserialize)]
struct ErrorBody {
    error: Option<ErrorObject>,
}

#[derive(Debug, Default, Deserialize)]
struct ErrorObject {
    message: Option<String>,
    errors: Option<Vec<ErrorItem>>,
}

#[derive(Debug, Default, Deserialize)]
struct ErrorItem {
    domain: Option<String>,
    reason: Option<String>,
    message: Option<String>,
}

/// Reads an answer whose status is no success; also gives Google's own words, for a person.
pub(super) fn classify(status: u16, body: &[u8]) -> (Class, String) {
    let Ok(ErrorBody { error: Some(error) }) = serde_json::from_slice::<ErrorBody>(body) else {
        return (
            without_body(status),
            format!("HTTP {status} without a readable error body"),
        );
    };
    let first = error.errors.as_ref().and_then(|errors| errors.first());
    let domain = first
        .and_then(|item| item.domain.as_deref())
        .unwrap_or_default();
    let reason = first
        .and_then(|item| item.reason.as_deref())
        .unwrap_or_default();
    let message = error
        .message
        .as_deref()
        .or(first.and_then(|item| item.message.as_deref()))
        .unwrap_or_default();
    let class = match status {
        500.. => Class::Transient,
        401 => Class::Unauthorized,
        _ if reason == "accessNotConfigured" => Class::NotEnabled,
        429 => quota(reason, message),
        403 if is_quota(domain, reason, first.is_none(), message) => quota(reason, message),
        403 => Class::Permission,
        400 | 404 => Class::BadRequest,
        _ => without_body(status),
    };
    let reason = if reason.is_empty() {
        "no reason"
    } else {
        reason
    };
    (class, format!("HTTP {status}, {reason}: {message}"))
}

/// An HTML page or half a body: nothing of it is Google's verdict on the request, whatever the status,
/// except where the status alone is clear.
fn without_body(status: u16) -> Class {
    match status {
        401 => Class::Unauthorized,
        429 => Class::Rate,
        _ => Class::Transient,
    }
}

fn is_quota(domain: &str, reason: &str, no_items: bool, message: &str) -> bool {
    const REASONS: [&str; 4] = [
        "quotaExceeded",
        "rateLimitExceeded",
        "userRateLimitExceeded",
        "dailyLimitExceeded",
    ];
    domain == "usageLimits"
        || REASONS.contains(&reason)
        || (no_items && message.to_ascii_lowercase().contains("quota"))
}

fn quota(reason: &str, message: &str) -> Class {
    if reason == "dailyLimitExceeded" {
        Class::Daily
    } else if message.to_ascii_lowercase().contains("load quota") {
        Class::Load
    } else {
        Class::Rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(code: u16, domain: &str, reason: &str, message: &str) -> String {
        format!(
            r#"{{"error":{{"code":{code},"message":"{message}","errors":[{{"domain":"{domain}","reason":"{reason}","message":"{message}"}}]}}}}"#
        )
    }

    #[test]
    fn every_documented_answer_has_its_class() {
        let qps = "Search Analytics QPS quota exceeded. Learn about usage limits: https://x.";
        let load = "Search Analytics load quota exceeded. Learn about usage limits: https://x.";
        let forbidden = "User does not have sufficient permission for site 'https://a/'.";
        let cases = [
            (403, body(403, "usageLimits", "quotaExceeded", qps), Class::Rate),
            (403, body(403, "usageLimits", "quotaExceeded", load), Class::Load),
            (429, body(429, "usageLimits", "rateLimitExceeded", "Rate Limit Exceeded"), Class::Rate),
            (403, body(403, "usageLimits", "userRateLimitExceeded", "slow down"), Class::Rate),
            (403, body(403, "usageLimits", "dailyLimitExceeded", "Daily Limit Exceeded"), Class::Daily),
            (403, body(403, "usageLimits", "accessNotConfigured", "not enabled"), Class::NotEnabled),
            (403, body(403, "global", "forbidden", forbidden), Class::Permission),
            (403, body(403, "global", "insufficientPermissions", "scope"), Class::Permission),
            (403, r#"{"error":{"code":403,"message":"Quota exceeded for x"}}"#.into(), Class::Rate),
            (403, r#"{"error":{"code":403,"message":"no"}}"#.into(), Class::Permission),
            (401, r#"{"error":{"code":401,"message":"Request had invalid authentication credentials."}}"#.into(), Class::Unauthorized),
            (500, body(500, "global", "backendError", "Backend Error"), Class::Transient),
            (500, r#"{"error":{"code":500,"message":null}}"#.into(), Class::Transient),
            (503, body(503, "global", "backendError", "x"), Class::Transient),
            (400, body(400, "global", "invalidParameter", "Invalid value"), Class::BadRequest),
            (404, body(404, "global", "notFound", "x"), Class::BadRequest),
            (502, "<html>Bad Gateway</html>".into(), Class::Transient),
            (403, "<html>a proxy's page</html>".into(), Class::Transient),
            (400, "{\"error\":{\"co".into(), Class::Transient),
            (408, String::new(), Class::Transient),
            (401, String::new(), Class::Unauthorized),
        ];
        for (status, body, expected) in cases {
            assert_eq!(
                classify(status, body.as_bytes()).0,
                expected,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn the_words_for_a_person_come_from_google() {
        let (_, words) = classify(
            400,
            body(400, "global", "invalidParameter", "Invalid value").as_bytes(),
        );
        assert_eq!(words, "HTTP 400, invalidParameter: Invalid value");
    }
}
