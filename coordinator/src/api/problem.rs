//! Errors as the API answers them: `application/problem+json` (RFC 9457) with a code for programs. Every
//! code stands in [`Code`], with its status and what it means.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared::payload::{JsonError, PayloadError};
use utoipa::ToSchema;

use crate::ledger::LedgerError;
use crate::operations::OperationError;
use crate::submission::{LineProblem, SubmissionError};

/// When a refused client may try again, if nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(5);

macro_rules! codes {
    ($($name:ident = $status:ident $word:literal $meaning:literal,)+) => {
        /// What went wrong, in one closed word for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub(super) enum Code {
            $(#[doc = $meaning] $name,)+
        }

        impl Code {
            /// The HTTP status that it is answered with.
            pub(super) fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)+ }
            }

            /// The word.
            pub(super) fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// The same for a person, for the description of the API.
            pub(super) fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }

            /// All of them.
            #[cfg(test)]
            pub(super) const ALL: &'static [Self] = &[$(Self::$name,)+];
        }
    };
}

codes! {
    BadParameter = BAD_REQUEST "bad_parameter" "A parameter is unknown, missing, or not usable.",
    BadIdempotencyKey = BAD_REQUEST "bad_idempotency_key" "The idempotency key is not usable.",
    BadHost = BAD_REQUEST "bad_host" "The Host header is missing or no host.",
    EmptySubmission = BAD_REQUEST "empty_submission" "There is no batch in it.",
    MalformedLine = BAD_REQUEST "malformed_line" "A line is no JSON, or not of the right shape.",
    BodyEndedEarly = BAD_REQUEST "body_ended_early" "The body broke off, or nothing came for too long.",
    Unauthorized = UNAUTHORIZED "unauthorized" "No token, or one that is not known.",
    Forbidden = FORBIDDEN "forbidden" "The token's role does not allow it.",
    ForeignOrigin = FORBIDDEN "foreign_origin" "A web page of another origin asks.",
    NotFound = NOT_FOUND "not_found" "There is nothing of this name.",
    MethodNotAllowed = METHOD_NOT_ALLOWED "method_not_allowed" "The path knows other methods.",
    RunFinished = CONFLICT "run_finished" "The run needs nothing more.",
    IdempotencyConflict = CONFLICT "idempotency_conflict" "The idempotency key belongs to a run that was submitted otherwise.",
    SubmissionUnderWay = CONFLICT "submission_under_way" "A submission with this idempotency key is under way.",
    PayloadTooLarge = PAYLOAD_TOO_LARGE "payload_too_large" "A payload or line is over the limit.",
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE "unsupported_media_type" "The body is not announced as NDJSON.",
    UnknownHost = MISDIRECTED_REQUEST "unknown_host" "The Host header names somebody else.",
    UnknownPipeline = UNPROCESSABLE_ENTITY "unknown_pipeline" "No pipeline of this name is configured.",
    NulNotAllowed = UNPROCESSABLE_ENTITY "nul_not_allowed" "A payload holds a NUL character.",
    BadKey = UNPROCESSABLE_ENTITY "bad_key" "A key is not usable.",
    WebhookNotAllowed = UNPROCESSABLE_ENTITY "webhook_not_allowed" "The webhook's address is not allowed.",
    QueueFull = TOO_MANY_REQUESTS "queue_full" "Too many batches are pending.",
    HeadersTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE "headers_too_large" "Too many headers, or too long ones.",
    Internal = INTERNAL_SERVER_ERROR "internal" "Something here is broken; the log says what.",
    LedgerUnavailable = SERVICE_UNAVAILABLE "ledger_unavailable" "The ledger does not answer.",
    Backpressure = SERVICE_UNAVAILABLE "backpressure" "Something is at its limit: the level, or the broker.",
}

/// An error on its way to a client.
#[derive(Debug)]
pub(super) struct Problem {
    code: Code,
    detail: String,
    line: Option<usize>,
    pointer: Option<&'static str>,
    /// Becomes the header `Retry-After`.
    retry_after: Option<Duration>,
}

/// An error as it is answered.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemDocument {
    /// Always `about:blank`: the code says what it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// One closed word for programs.
    code: Code,
    /// What is wrong and what to do, for a person.
    detail: String,
    /// Which line of a submission, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// Which member of that line (JSON pointer).
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<&'static str>,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            line: None,
            pointer: None,
            retry_after: None,
        }
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    pub(super) fn bad_parameter(detail: impl Into<String>) -> Self {
        Self::new(Code::BadParameter, detail)
    }
}

impl From<&LedgerError> for Problem {
    fn from(error: &LedgerError) -> Self {
        tracing::error!(%error, "the ledger did not answer a request");
        match error {
            // What exactly is wrong with the database is for the operator's log, not for every client.
            LedgerError::Unavailable(_) => Self::new(
                Code::LedgerUnavailable,
                "the ledger does not answer, try again",
            ),
            other => Self::new(Code::Internal, other.to_string()),
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        Self::from(&error)
    }
}

impl From<OperationError> for Problem {
    fn from(error: OperationError) -> Self {
        match &error {
            OperationError::UnknownRun => Self::not_found(super::extract::UNKNOWN_RUN),
            OperationError::Finished(_) => Self::new(Code::RunFinished, error.to_string()),
            OperationError::Ledger(error) => Self::from(error),
        }
    }
}

impl From<SubmissionError> for Problem {
    fn from(error: SubmissionError) -> Self {
        let detail = error.to_string();
        let code = match &error {
            SubmissionError::UnknownPipeline { .. } => Code::UnknownPipeline,
            SubmissionError::Line { line, problem } => {
                let (code, pointer) = line_problem(problem);
                return Self {
                    line: Some(*line),
                    pointer,
                    ..Self::new(code, detail)
                };
            }
            SubmissionError::Empty => Code::EmptySubmission,
            SubmissionError::IdempotencyKey => Code::BadIdempotencyKey,
            SubmissionError::Conflict(_) => Code::IdempotencyConflict,
            SubmissionError::UnderWay => Code::SubmissionUnderWay,
            SubmissionError::QueueFull { .. } => Code::QueueFull,
            SubmissionError::Backpressure(retry) => {
                return Self {
                    retry_after: Some(retry.after),
                    ..Self::new(Code::Backpressure, detail)
                };
            }
            SubmissionError::Webhook { .. } => Code::WebhookNotAllowed,
            SubmissionError::Body(_) => Code::BodyEndedEarly,
            SubmissionError::Ledger(error) => return Self::from(error),
        };
        Self::new(code, detail)
    }
}

/// What is wrong with a line, and which of its members it is.
fn line_problem(problem: &LineProblem) -> (Code, Option<&'static str>) {
    const PAYLOAD: Option<&str> = Some("/payload");
    match problem {
        LineProblem::TooLong => (Code::PayloadTooLarge, None),
        LineProblem::Payload(PayloadError::TooLarge(_)) => (Code::PayloadTooLarge, PAYLOAD),
        LineProblem::Payload(PayloadError::Json(JsonError::Nul)) => (Code::NulNotAllowed, PAYLOAD),
        LineProblem::Payload(PayloadError::Json(_)) => (Code::MalformedLine, PAYLOAD),
        LineProblem::Malformed(_) | LineProblem::NotUtf8(_) => (Code::MalformedLine, None),
        LineProblem::Key(_) => (Code::BadKey, Some("/key")),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let retry_after = self.retry_after.unwrap_or(RETRY_AFTER);
        let document = ProblemDocument {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            code: self.code,
            detail: self.detail,
            line: self.line,
            pointer: self.pointer,
        };
        let mut response = (status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                // Whole seconds, rounded up: a client that comes too early is refused again.
                let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
                headers.insert(header::RETRY_AFTER, seconds.max(1).into());
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}
