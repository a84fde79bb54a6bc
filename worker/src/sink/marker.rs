//! Markers and rows in the form in which they are stored.

use shared::id::BatchId;
use shared::outcome::Completed;
use shared::payload::contains_nul;
use xxhash_rust::xxh3::Xxh3;

use super::SinkError;
use crate::handler::Rows;

/// The hash of what a batch stores; empty when it stores nothing.
pub(super) fn digest(rows: &Rows) -> Vec<u8> {
    match rows {
        Rows::None => Vec::new(),
        Rows::Slice(slice) => slice.rows.content_hash().to_bytes().to_vec(),
        Rows::Copy(rows) => rows.digest(),
        Rows::Json(rows) => {
            let mut hash = Xxh3::new();
            for row in rows.iter() {
                hash.update(&(row.len() as u64).to_le_bytes());
                hash.update(row.as_bytes());
            }
            hash.digest128().to_be_bytes().to_vec()
        }
    }
}

/// The outcome to store: what the handler counted and what the sink adds.
pub(super) fn with_counts(
    completed: &Completed,
    rows_written: u64,
    slices_unchanged: u64,
) -> Completed {
    let mut completed = completed.clone();
    for (name, count) in [
        ("rows_written", rows_written),
        ("slices_unchanged", slices_unchanged),
    ] {
        if count > 0 {
            *completed.statistics.entry(name.to_owned()).or_default() += count;
        }
    }
    completed
}

pub(super) fn outcome_json(completed: &Completed) -> Result<String, SinkError> {
    serde_json::to_string(completed).map_err(|e| refused(sqlx::Error::Encode(Box::new(e))))
}

/// Reads a stored outcome.
pub(super) fn read_outcome(batch: BatchId, outcome: &str) -> Result<Completed, SinkError> {
    serde_json::from_str(outcome).map_err(|e| SinkError::DamagedMarker {
        batch,
        problem: e.to_string(),
    })
}

/// PostgreSQL cannot hold NUL in JSON that is looked into, so no sink takes it. Nor does a sink for JSON take what was
/// collected for another.
pub(super) fn check_json(rows: &Rows) -> Result<(), SinkError> {
    let rows = match rows {
        Rows::None | Rows::Slice(_) => return Ok(()),
        Rows::Json(rows) => rows,
        Rows::Copy(_) => return Err(other_form()),
    };
    match rows.iter().position(contains_nul) {
        None => Ok(()),
        Some(index) => Err(SinkError::Unfit(format!(
            "row {index} contains a NUL character (\\u0000)"
        ))),
    }
}

/// A count in the form that databases have.
pub(super) fn stored(count: u64) -> Result<i64, SinkError> {
    i64::try_from(count).map_err(|e| refused(sqlx::Error::Encode(Box::new(e))))
}

/// Of rows that were collected in the form of another sink.
pub(super) fn other_form() -> SinkError {
    SinkError::Unfit("they were collected for another sink".to_owned())
}

fn refused(error: sqlx::Error) -> SinkError {
    SinkError::Refused(error.into())
}
