//! An answer on its way out, before it meets the wire.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Format;
use super::error::ApiError;
use super::json::pretty;
use crate::app::App;
use crate::fault::Fault;

pub(crate) const JSON: &str = "application/json; charset=UTF-8";
const HTML: &str = "text/html; charset=UTF-8";

/// What an answer carries.
#[derive(Debug)]
pub(crate) enum Body {
    /// Text still to be indented and compressed as asked for; JSON when its content type says so.
    Text(String),
    /// Final bytes.
    Ready { bytes: Bytes, is_gzip: bool },
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) retry_after_s: Option<u64>,
    pub(crate) body: Body,
    /// Rows in the body, which latency depends on.
    pub(crate) rows: usize,
    /// What happens to it on the wire.
    pub(crate) wire: Option<Fault>,
    /// Counts the call as under way until the answer is gone.
    pub(crate) under_way: Option<SiteCall>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: Body) -> Self {
        Self {
            status,
            content_type: JSON.to_owned(),
            retry_after_s: None,
            body,
            rows: 0,
            wire: None,
            under_way: None,
        }
    }

    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, Body::Text(value.to_string()))
    }

    pub(crate) fn text(status: u16, content_type: &str, text: String) -> Self {
        Self {
            content_type: content_type.to_owned(),
            ..Self::new(status, Body::Text(text))
        }
    }

    /// No answer at all: the connection breaks instead.
    pub(crate) fn broken(fault: Fault) -> Self {
        Self {
            wire: Some(fault),
            ..Self::new(
                0,
                Body::Ready {
                    bytes: Bytes::new(),
                    is_gzip: false,
                },
            )
        }
    }

    /// Final bytes, and whether they are compressed.
    pub(crate) fn bytes(&self, format: Format) -> (Bytes, bool) {
        match &self.body {
            Body::Ready { bytes, is_gzip } => (bytes.clone(), *is_gzip),
            Body::Text(text) => {
                let indented = (format.pretty && self.content_type == JSON).then(|| pretty(text));
                let text = indented.as_deref().unwrap_or(text);
                if format.gzip {
                    (gzip(text.as_bytes()), true)
                } else {
                    (Bytes::copy_from_slice(text.as_bytes()), false)
                }
            }
        }
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        let content_type = if error.is_html { HTML } else { JSON };
        Self {
            retry_after_s: error.retry_after_s,
            ..Self::text(error.status, content_type, error.body)
        }
    }
}

/// Compressed at the fastest level: pages are compressed once and sent often, but the first one waits.
pub(crate) fn gzip(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    // Writing to a vector cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().map(Bytes::from).unwrap_or_default()
}

/// One call to a site that is under way.
#[derive(Debug)]
pub(crate) struct SiteCall {
    app: Arc<App>,
    site: String,
}

impl SiteCall {
    pub(crate) fn begin(app: &Arc<App>, site: &str) -> Self {
        app.stats().site_call(site);
        Self {
            app: Arc::clone(app),
            site: site.to_owned(),
        }
    }
}

impl Drop for SiteCall {
    fn drop(&mut self) {
        self.app.stats().site_call_ended(&self.site);
    }
}
