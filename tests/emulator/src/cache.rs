//! What was made before: sorted rows and ready pages, bounded by bytes.
//!
//! Two askers of the same thing make it once; the second waits for the first.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync;

use crate::generator::RowSet;

const BYTES_PER_MB: u64 = 1 << 20;
/// One part in so many is for rows, the rest for pages: rows are small and only serve to make pages.
const ROWS_SHARE: u64 = 4;
/// A guess that sizes the tables; growing beyond it is no error.
const EXPECTED_ITEMS: usize = 4_096;

/// A ready body.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) body: Bytes,
    pub(crate) rows: usize,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<String, Page> for ByBytes {
    fn weight(&self, key: &String, page: &Page) -> u64 {
        (key.len() + page.body.len()) as u64
    }
}

impl Weighter<String, Arc<RowSet>> for ByBytes {
    fn weight(&self, key: &String, rows: &Arc<RowSet>) -> u64 {
        (key.len() + rows.bytes()) as u64
    }
}

/// Rows and pages by everything that decides them.
pub(crate) struct Cache {
    rows: sync::Cache<String, Arc<RowSet>, ByBytes>,
    pages: sync::Cache<String, Page, ByBytes>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("rows", &self.rows.len())
            .field("pages", &self.pages.len())
            .finish()
    }
}

impl Cache {
    pub(crate) fn new(megabytes: u64) -> Self {
        let total = megabytes.saturating_mul(BYTES_PER_MB);
        let for_rows = total / ROWS_SHARE;
        Self {
            rows: sync::Cache::with_weighter(EXPECTED_ITEMS, for_rows, ByBytes),
            pages: sync::Cache::with_weighter(EXPECTED_ITEMS, total - for_rows, ByBytes),
        }
    }

    pub(crate) fn page(&self, key: &str) -> Option<Page> {
        self.pages.get(key)
    }

    pub(crate) fn page_or_make(&self, key: &str, make: impl FnOnce() -> Page) -> Page {
        made(self.pages.get_or_insert_with(key, || Ok(make())))
    }

    pub(crate) fn rows_or_make(&self, key: &str, make: impl FnOnce() -> RowSet) -> Arc<RowSet> {
        made(self.rows.get_or_insert_with(key, || Ok(Arc::new(make()))))
    }
}

fn made<T>(result: Result<T, std::convert::Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}
