//! Errors as the API answers them: `application/problem+json` (RFC 9457) with a code for programs.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shared::payload::{JsonError, PayloadError};

use crate::ledger::LedgerError;
use crate::submission::{LineProblem, SubmissionError};

/// Seconds after which a refused client may try again.
const RETRY_AFTER_S: u64 = 5;

/// An error as it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Problem {
    /// Always `about:blank`: the code says what it is.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// One closed word for programs.
    code: String,
    /// What is wrong and what to do, for a person.
    detail: String,
    /// Which line of a submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
}

impl Problem {
    fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail: detail.into(),
            line: None,
        }
    }

    pub(super) fn not_found(detail: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this path knows other methods",
        )
    }

    pub(super) fn unauthorized() -> Self {
        let detail = "send the coordinator's api.token as 'Authorization: Bearer …' (the CLI takes it from TIDEGATE_TOKEN)";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    pub(super) fn bad_parameter(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_parameter", detail)
    }

    pub(super) fn unsupported_media_type() -> Self {
        let detail = "send NDJSON: Content-Type: application/x-ndjson, one batch a line";
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            detail,
        )
    }
}

impl From<&LedgerError> for Problem {
    fn from(error: &LedgerError) -> Self {
        tracing::error!(%error, "the ledger did not answer a request");
        match error {
            // What exactly is wrong with the database is for the operator's log, not for every client.
            LedgerError::Unavailable(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ledger_unavailable",
                "the ledger does not answer, try again",
            ),
            other => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                other.to_string(),
            ),
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        Self::from(&error)
    }
}

impl From<SubmissionError> for Problem {
    fn from(error: SubmissionError) -> Self {
        let detail = error.to_string();
        let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
        let (status, code) = match &error {
            SubmissionError::UnknownPipeline { .. } => (unprocessable, "unknown_pipeline"),
            SubmissionError::Line { problem, .. } => match problem {
                LineProblem::TooLong | LineProblem::Payload(PayloadError::TooLarge(_)) => {
                    (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large")
                }
                LineProblem::Payload(PayloadError::Json(JsonError::Nul)) => {
                    (unprocessable, "nul_not_allowed")
                }
                LineProblem::Malformed(_)
                | LineProblem::NotUtf8(_)
                | LineProblem::Payload(PayloadError::Json(_)) => {
                    (StatusCode::BAD_REQUEST, "malformed_line")
                }
                LineProblem::Key(_) => (unprocessable, "bad_key"),
            },
            SubmissionError::Empty => (StatusCode::BAD_REQUEST, "empty_submission"),
            SubmissionError::IdempotencyKey => (StatusCode::BAD_REQUEST, "bad_idempotency_key"),
            SubmissionError::Conflict(_) => (StatusCode::CONFLICT, "idempotency_conflict"),
            SubmissionError::UnderWay => (StatusCode::CONFLICT, "submission_under_way"),
            SubmissionError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            SubmissionError::Body(_) => (StatusCode::BAD_REQUEST, "body_ended_early"),
            SubmissionError::Ledger(error) => return Self::from(error),
        };
        let line = if let SubmissionError::Line { line, .. } = error {
            Some(line)
        } else {
            None
        };
        Self {
            line,
            ..Self::new(status, code, detail)
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}
