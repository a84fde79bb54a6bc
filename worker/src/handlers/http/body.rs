//! What an answer with 2xx holds.
//!
//! - `application/json` (or `…+json`): one object, `{"rows": […], "follow_ups": […], "statistics": {…}, "batch_key": "…"}`.
//!   `rows` must be there, so that somebody else's JSON is not taken for no rows; the others may be left out:
//!   `{"pipeline": …, "key": …, "payload": …}` each follow-up, whole numbers the statistics; rows are written together
//!   with those of the same batch key.
//! - `application/x-ndjson` (or `application/jsonl`): a row a line.
//!
//! Anything else, a page of HTML for instance, fails the batch with the reason `bad_output`; more than 64 MiB,
//! 100,000 rows or 1 MiB in a row with `output_too_large`. An answer that breaks off is tried again.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use reqwest::header::{CONNECTION, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use reqwest::{Response, Version};
use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use shared::name::Key;
use shared::net::in_words;
use shared::outcome::{FollowUp, Statistics};
use tokio::time::timeout;

use crate::collect::{BAD_OUTPUT, RowForm};
use crate::handler::{HandlerError, Output};
use crate::handlers::rows::{Flood, MAX_LINE_BYTES, MAX_OUTPUT_BYTES, MAX_ROWS, RowReader};
use crate::handlers::wire::check_statistics;

/// Most bytes of an unwelcome answer that are read, so that its connection can be used again.
const READ_BYTES: usize = 16 * 1024;
/// Most bytes of it that are shown.
const SHOWN_BYTES: usize = 512;
/// How long it is waited for: its status said enough.
const EXPLANATION: Duration = Duration::from_secs(2);

/// How an answer is written.
enum Format {
    Json,
    Ndjson,
}

/// An answer in JSON.
#[derive(serde::Deserialize)]
struct Envelope {
    rows: Capped<Box<RawValue>>,
    #[serde(default)]
    follow_ups: Vec<FollowUp>,
    #[serde(default)]
    statistics: Statistics,
    batch_key: Option<Key>,
}

/// As many values as a batch may have rows; more are counted, not kept.
struct Capped<T> {
    kept: Vec<T>,
    over: bool,
}

/// Reads the result.
pub(super) async fn read(response: Response, rows: &dyn RowForm) -> Result<Output, HandlerError> {
    match Format::of(response.headers()) {
        Ok(Format::Json) => read_json(response, rows).await,
        Ok(Format::Ndjson) if may_be_cut_off(&response) => Err(bad(
            "the answer is NDJSON that ends where the connection does, which may be too early: send it with a \
             Content-Length or chunked",
        )),
        Ok(Format::Ndjson) => read_ndjson(response, rows).await,
        Err(problem) => Err(explained(bad(problem), response).await),
    }
}

/// Adds to an error what the answer says in words.
pub(super) async fn explained(error: HandlerError, mut response: Response) -> HandlerError {
    let mut said = Vec::new();
    let listen = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            said.extend_from_slice(&chunk);
            if said.len() > READ_BYTES {
                break;
            }
        }
    };
    let _ = timeout(EXPLANATION, listen).await;
    said.truncate(SHOWN_BYTES);
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    if said.is_empty() {
        return error;
    }
    let add = |error: String| format!("{error}: {said}");
    match error {
        HandlerError::Retry { error, after } => HandlerError::Retry {
            error: add(error),
            after,
        },
        HandlerError::Throttled { reason, after } => HandlerError::Throttled {
            reason: add(reason),
            after,
        },
        HandlerError::Fail { reason, error } => HandlerError::fail(reason, add(error)),
        HandlerError::CoordinatorAway => HandlerError::CoordinatorAway,
    }
}

async fn read_json(mut response: Response, rows: &dyn RowForm) -> Result<Output, HandlerError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_OUTPUT_BYTES {
            return Err(Flood::Bytes.into());
        }
    }
    let envelope: Envelope = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("the answer is not as agreed: {error}")))?;
    envelope.into_output(rows)
}

async fn read_ndjson(mut response: Response, rows: &dyn RowForm) -> Result<Output, HandlerError> {
    let mut rows = RowReader::new(rows);
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        rows.push(&chunk)?;
    }
    Ok(Output {
        rows: rows.into_rows()?,
        ..Output::default()
    })
}

impl Format {
    fn of(headers: &HeaderMap) -> Result<Self, String> {
        let Some(content_type) = headers.get(CONTENT_TYPE) else {
            return Err(
                "the answer has no Content-Type (without rows, answer with 204)".to_owned(),
            );
        };
        let text = String::from_utf8_lossy(content_type.as_bytes()).to_ascii_lowercase();
        let essence = text.split(';').next().unwrap_or_default().trim();
        match essence {
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Self::Ndjson),
            json if json == "application/json" || json.ends_with("+json") => Ok(Self::Json),
            other => Err(format!(
                "the answer is {other:.100}, not application/json or application/x-ndjson"
            )),
        }
    }
}

impl Envelope {
    fn into_output(self, form: &dyn RowForm) -> Result<Output, HandlerError> {
        if self.rows.over {
            return Err(Flood::Rows.into());
        }
        let mut rows = form.collector();
        for (index, row) in self.rows.kept.iter().enumerate() {
            if row.get().len() > MAX_LINE_BYTES {
                return Err(HandlerError::fail(
                    "output_too_large",
                    format!("row {index} has more than {MAX_LINE_BYTES} bytes"),
                ));
            }
            rows.push(row.get()).map_err(|problem| {
                HandlerError::fail(problem.reason(), format!("row {index} {problem}"))
            })?;
        }
        check_statistics(&self.statistics)
            .map_err(|problem| bad(format!("the answer {problem}")))?;
        Ok(Output {
            rows: rows.finish(),
            batch_key: self.batch_key,
            follow_ups: self.follow_ups,
            statistics: self.statistics,
        })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Capped<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
            type Value = Capped<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Capped<T>, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < MAX_ROWS {
                    match values.next_element()? {
                        Some(value) => kept.push(value),
                        None => return Ok(Capped { kept, over: false }),
                    }
                }
                let mut over = false;
                while values.next_element::<IgnoredAny>()?.is_some() {
                    over = true;
                }
                Ok(Capped { kept, over })
            }
        }

        deserializer.deserialize_seq(Values(PhantomData))
    }
}

/// Whether a lost connection would look like the end of the answer: it has no length, and no chunks that say
/// that there are no more. Only HTTP/1 does that, and then it says that it will close.
fn may_be_cut_off(response: &Response) -> bool {
    let headers = response.headers();
    let closes = headers
        .get(CONNECTION)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    let closes = match response.version() {
        Version::HTTP_09 | Version::HTTP_10 => true,
        Version::HTTP_11 => closes,
        _ => false,
    };
    closes && response.content_length().is_none() && !headers.contains_key(TRANSFER_ENCODING)
}

fn broken(error: reqwest::Error) -> HandlerError {
    HandlerError::retry(format!(
        "the answer broke off: {}",
        in_words(&error.without_url())
    ))
}

fn bad(problem: impl Into<String>) -> HandlerError {
    HandlerError::fail(BAD_OUTPUT, problem)
}
