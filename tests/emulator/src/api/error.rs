//! The API's error bodies, letter by letter as they were captured; compact here, indented when asked for.

use serde_json::Value;

use crate::fault::{Fault, Kind};
use crate::quota::Limit;

const RATE: &str = "Search Analytics QPS quota exceeded. Learn about usage limits: \
                    https://developers.google.com/webmaster-tools/v3/limits.";
const LOAD: &str = "Search Analytics load quota exceeded. Learn about usage limits: \
                    https://developers.google.com/webmaster-tools/v3/limits.";
const UNAUTHENTICATED: &str = "Request had invalid authentication credentials. Expected OAuth 2 access token, \
    login cookie or other valid authentication credential. See \
    https://developers.google.com/identity/sign-in/web/devconsole-project.";
const HTML_502: &str = "<!DOCTYPE html>\n<html lang=en>\n<title>Error 502 (Server Error)!!1</title>\n\
    <p><b>502.</b> <ins>That’s an error.</ins>\n<p>The server encountered a temporary error and could not \
    complete your request.<p>Please try again in 30 seconds. <ins>That’s all we know.</ins>\n";

/// An answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) is_html: bool,
    pub(crate) retry_after_s: Option<u64>,
}

/// A JSON string.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

impl ApiError {
    fn new(status: u16, body: String) -> Self {
        Self {
            status,
            body,
            is_html: false,
            retry_after_s: None,
        }
    }

    /// The usual shape: message, one reason, and a status word where Google sends one.
    fn usual(status: u16, message: &str, domain: &str, reason: &str, word: Option<&str>) -> Self {
        let message = quoted(message);
        let word = word.map_or(String::new(), |word| format!(r#","status":"{word}""#));
        Self::new(
            status,
            format!(
                r#"{{"error":{{"code":{status},"message":{message},"errors":[{{"message":{message},"domain":"{domain}","reason":"{reason}"}}]{word}}}}}"#
            ),
        )
    }

    pub(crate) fn unauthenticated() -> Self {
        let message = quoted(UNAUTHENTICATED);
        Self::new(
            401,
            format!(r#"{{"error":{{"code":401,"message":{message},"status":"UNAUTHENTICATED"}}}}"#),
        )
    }

    pub(crate) fn bad_request(message: &str) -> Self {
        Self::usual(
            400,
            message,
            "global",
            "badRequest",
            Some("INVALID_ARGUMENT"),
        )
    }

    /// A value outside of what a parameter allows.
    pub(crate) fn invalid_parameter(message: &str) -> Self {
        Self::usual(
            400,
            message,
            "global",
            "invalidParameter",
            Some("INVALID_ARGUMENT"),
        )
    }

    pub(crate) fn not_found() -> Self {
        Self::usual(
            404,
            "Requested entity was not found.",
            "global",
            "notFound",
            Some("NOT_FOUND"),
        )
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::usual(
            405,
            "Method not allowed.",
            "global",
            "httpMethodNotAllowed",
            None,
        )
    }

    pub(crate) fn too_large() -> Self {
        Self::usual(
            413,
            "Request Entity Too Large",
            "global",
            "uploadTooLarge",
            None,
        )
    }

    pub(crate) fn permission(site: &str) -> Self {
        let message = format!(
            "User does not have sufficient permission for site '{site}'. \
             See also: https://support.google.com/webmasters/answer/2451999."
        );
        Self::usual(403, &message, "global", "forbidden", None)
    }

    pub(crate) fn rate_quota() -> Self {
        Self::usual(403, RATE, "usageLimits", "quotaExceeded", None)
    }

    pub(crate) fn load_quota() -> Self {
        Self::usual(403, LOAD, "usageLimits", "quotaExceeded", None)
    }

    /// The generic rate error, seen with status 429 and 403.
    fn rate_limit(status: u16) -> Self {
        Self::new(
            status,
            format!(
                r#"{{"error":{{"errors":[{{"domain":"usageLimits","reason":"rateLimitExceeded","message":"Rate Limit Exceeded"}}],"code":{status},"message":"Rate Limit Exceeded"}}}}"#
            ),
        )
    }

    /// The error of the limit that a query ran into.
    pub(crate) fn over(limit: Limit) -> Self {
        match limit {
            Limit::SiteBurst | Limit::SiteMinute => Self::rate_quota(),
            Limit::LoadShort | Limit::LoadLong => Self::load_quota(),
            Limit::NewProject => Self::rate_limit(429),
            Limit::ProjectMinute => Self::rate_limit(403),
            Limit::UserMinute => Self::usual(
                403,
                "User Rate Limit Exceeded",
                "usageLimits",
                "userRateLimitExceeded",
                None,
            ),
            Limit::ProjectDay => Self::usual(
                403,
                "Daily Limit Exceeded. The quota will be reset at midnight Pacific Time (PT).",
                "usageLimits",
                "dailyLimitExceeded",
                None,
            ),
        }
    }

    /// The error that a fault answers with; `None` when it does something else.
    pub(crate) fn of_fault(fault: &Fault) -> Option<Self> {
        let retry_after_s = fault.retry_after_s;
        Some(match fault.kind {
            Kind::Internal => Self::new(
                500,
                r#"{"error":{"code":500,"message":"Backend Error","errors":[{"domain":"global","reason":"backendError"}]}}"#.to_owned(),
            ),
            Kind::InternalNull => Self::new(500, r#"{"error":{"code":500,"message":null}}"#.to_owned()),
            Kind::Unavailable => Self {
                retry_after_s,
                ..Self::usual(
                    503,
                    "The service is currently unavailable.",
                    "global",
                    "backendError",
                    Some("UNAVAILABLE"),
                )
            },
            Kind::TooManyRequests => Self { retry_after_s, ..Self::rate_limit(429) },
            Kind::RateQuota => Self::rate_quota(),
            Kind::LoadQuota => Self::load_quota(),
            Kind::Unauthorized | Kind::TokenExpiredEarly => Self::unauthenticated(),
            Kind::BadRequest => Self::bad_request("Request contains an invalid argument."),
            Kind::Html502 => Self { is_html: true, ..Self::new(502, HTML_502.to_owned()) },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_and_say_what_clients_look_for() {
        let read = |error: &ApiError| serde_json::from_str::<Value>(&error.body).unwrap();
        let permission = read(&ApiError::permission("https://x.example/\"'"));
        assert_eq!(permission["error"]["errors"][0]["reason"], "forbidden");
        assert_eq!(permission["error"]["errors"][0]["domain"], "global");
        let load = read(&ApiError::over(Limit::LoadShort));
        assert_eq!(load["error"]["errors"][0]["domain"], "usageLimits");
        assert!(
            load["error"]["message"]
                .as_str()
                .unwrap()
                .contains("load quota exceeded")
        );
        let daily = read(&ApiError::over(Limit::ProjectDay));
        assert_eq!(daily["error"]["errors"][0]["reason"], "dailyLimitExceeded");
        assert_eq!(
            read(&ApiError::bad_request("x"))["error"]["status"],
            "INVALID_ARGUMENT"
        );
    }

    #[test]
    fn captured_bodies_are_kept_letter_by_letter() {
        assert!(ApiError::unauthenticated().body.starts_with(
            r#"{"error":{"code":401,"message":"Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other"#
        ));
        assert!(
            ApiError::unauthenticated()
                .body
                .ends_with(r#"devconsole-project.","status":"UNAUTHENTICATED"}}"#)
        );
    }
}
