//! How far a batch has come, for handlers that can go on where an earlier attempt stopped: a small JSON document of
//! their own, kept beside the commit markers until the batch's marker takes its place.
//!
//! A cursor says nothing about effects: what an attempt *returns* takes effect once, at its end. Who resumes has to
//! keep what was found before the cursor, in the cursor itself or in a place of its own.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::Attempt;
use shared::payload::contains_nul;
use tokio::runtime::Handle;

use crate::handler::HandlerError;
use crate::sink::SinkError;

/// Most bytes of a cursor: it is written again and again.
pub const MAX_CURSOR_BYTES: usize = 64 * 1024;

/// Days for which a cursor is kept that nobody comes back to.
pub const KEPT_DAYS: i64 = 30;

/// Where cursors are kept.
#[async_trait]
pub trait Cursors: std::fmt::Debug + Send + Sync + 'static {
    /// The cursor that was saved last.
    async fn cursor(&self, batch: BatchId) -> Result<Option<Box<RawValue>>, SinkError>;

    /// Saves a cursor in place of the one before; unless a later attempt has saved one, or the batch is done.
    async fn save_cursor(
        &self,
        batch: BatchId,
        attempt: Attempt,
        cursor: Box<RawValue>,
    ) -> Result<(), SinkError>;

    /// Removes cursors that nobody has saved for [`KEPT_DAYS`]: of batches that are dead, or have no marker here.
    async fn forget_old_cursors(&self) -> Result<(), SinkError>;
}

/// A cursor as it was stored; one that somebody damaged is none.
pub(crate) fn read_cursor(batch: BatchId, text: String) -> Option<Box<RawValue>> {
    let read = RawValue::from_string(text);
    if let Err(error) = &read {
        tracing::warn!(batch.id = %batch, %error, "a damaged cursor, the batch starts from the beginning");
    }
    read.ok()
}

/// Why a cursor was not saved. The one before stays.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// It is longer than [`MAX_CURSOR_BYTES`].
    #[error(
        "a cursor of {0} bytes, at most {MAX_CURSOR_BYTES} are allowed: keep what is long elsewhere"
    )]
    TooLarge(usize),
    /// It cannot be written as JSON that a database takes.
    #[error("a cursor that cannot be stored: {0}")]
    NotStorable(String),
    /// The sink does not take it. The handler may go on, and lose time if it has to start again.
    #[error("cannot save a cursor: {0}")]
    Sink(#[from] SinkError),
}

impl From<CursorError> for HandlerError {
    fn from(error: CursorError) -> Self {
        match error {
            CursorError::TooLarge(_) | CursorError::NotStorable(_) => {
                Self::fail("bad_cursor", error.to_string())
            }
            CursorError::Sink(_) => Self::retry(error.to_string()),
        }
    }
}

/// One batch's cursor.
#[derive(Debug, Clone, Default)]
pub struct Cursor {
    found: Option<Arc<RawValue>>,
    store: Option<Store>,
}

/// The sink's connections belong to the runtime that the worker runs on, so that is where they are used.
#[derive(Debug, Clone)]
struct Store {
    cursors: Arc<dyn Cursors>,
    runtime: Handle,
}

impl Cursor {
    /// A cursor that is kept in this place. `found` is what was there when the batch was delivered.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn kept_in(cursors: Arc<dyn Cursors>, found: Option<Box<RawValue>>) -> Self {
        Self {
            found: found.map(Arc::from),
            store: Some(Store {
                cursors,
                runtime: Handle::current(),
            }),
        }
    }

    /// As it was found, unread.
    #[must_use]
    pub fn found(&self) -> Option<&RawValue> {
        self.found.as_deref()
    }

    /// As it was found; one that does not fit the type fails the batch.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, HandlerError> {
        let read = |cursor: &RawValue| serde_json::from_str(cursor.get());
        self.found().map(read).transpose().map_err(|error| {
            HandlerError::fail(
                "bad_cursor",
                format!("the saved cursor does not fit: {error}"),
            )
        })
    }

    pub(crate) async fn save(
        &self,
        batch: BatchId,
        attempt: Attempt,
        cursor: &(impl Serialize + ?Sized + Sync),
    ) -> Result<(), CursorError> {
        let text = serde_json::to_string(cursor)
            .map_err(|error| CursorError::NotStorable(error.to_string()))?;
        if text.len() > MAX_CURSOR_BYTES {
            return Err(CursorError::TooLarge(text.len()));
        }
        if contains_nul(&text) {
            return Err(CursorError::NotStorable(
                "it contains a NUL character".into(),
            ));
        }
        let cursor = RawValue::from_string(text)
            .map_err(|error| CursorError::NotStorable(error.to_string()))?;
        let Some(Store { cursors, runtime }) = self.store.clone() else {
            return Ok(());
        };
        let saving = async move { cursors.save_cursor(batch, attempt, cursor).await };
        match runtime.spawn(saving).await {
            Ok(saved) => Ok(saved?),
            Err(error) => Err(CursorError::NotStorable(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_kept_is_refused() {
        let (batch, attempt) = (BatchId::generate(), Attempt::new(1));
        let cursor = Cursor::default();
        let save = async |text: &str| cursor.save(batch, attempt, text).await;
        assert!(save("fine").await.is_ok());
        let long = save(&"x".repeat(MAX_CURSOR_BYTES)).await.unwrap_err();
        assert!(matches!(long, CursorError::TooLarge(65_538)), "{long}");
        let nul = save("a\0b").await.unwrap_err();
        assert!(matches!(
            HandlerError::from(nul),
            HandlerError::Fail {
                reason: "bad_cursor",
                ..
            }
        ));
    }

    #[test]
    fn a_cursor_of_another_shape_fails_the_batch() {
        let found = RawValue::from_string(r#"{"line":7}"#.into()).unwrap();
        let cursor = Cursor {
            found: Some(Arc::from(found)),
            store: None,
        };
        let line: serde_json::Value = cursor.read().unwrap().unwrap();
        assert_eq!(line["line"], 7);
        assert!(cursor.read::<u32>().is_err());
        assert_eq!(Cursor::default().read::<u32>().unwrap(), None);
    }
}
