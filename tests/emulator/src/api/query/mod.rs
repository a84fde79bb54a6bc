//! `searchanalytics.query`: the endpoint that everything here is for.
//!
//! [`request`] reads and checks, the generator makes rows, [`window`] picks those of the page, [`render`]
//! writes them; [`job`] holds the four together. Rows and pages are kept, so that a page asked for twice
//! costs one copy.

mod job;
mod render;
mod request;
mod rules;
mod sketch;
mod window;

use std::sync::Arc;

use bytes::Bytes;

pub(crate) use render::rows_as_lines;
pub(crate) use request::Request;
pub(crate) use sketch::Sketch;

use super::Format;
use super::json::Mask;
use super::reply::{Body, Reply};
use crate::app::App;
use crate::cache::Page;
use crate::config::Config;
use crate::fault::{Fault, Kind};
use crate::generator::fnv;
use job::Job;

/// Answers a request that passed all checks.
pub(crate) async fn serve(
    app: &Arc<App>,
    config: &Config,
    request: Request,
    format: Format,
    mask: &Mask,
    fault: Option<Fault>,
) -> Reply {
    // Cut JSON is what the client is to read, not a cut compression of it.
    let cuts_json = fault.is_some_and(|fault| fault.kind == Kind::TruncatedJson);
    let format = Format {
        gzip: format.gzip && !cuts_json,
        ..format
    };
    let job = Job::new(app, config, request, format, mask, fault);
    let page_key = job.page_key();
    let page = match app.cache.page(&page_key).filter(|_| job.twist.is_none()) {
        Some(page) => page,
        None => make(Arc::clone(app), job, page_key.clone()).await,
    };
    let wire = fault.filter(|fault| is_on_the_wire(fault.kind));
    let is_clean = fault.is_none_or(|fault| {
        matches!(
            fault.kind,
            Kind::Stall | Kind::SlowDrip | Kind::MetadataCamel
        )
    });
    let is_wasted = wire.is_some_and(|fault| !matches!(fault.kind, Kind::Stall | Kind::SlowDrip));
    app.stats()
        .page(is_clean.then(|| fnv(&page_key)), page.rows, is_wasted);
    Reply {
        rows: page.rows,
        wire,
        ..Reply::new(
            200,
            Body::Ready {
                bytes: page.body,
                is_gzip: format.gzip,
            },
        )
    }
}

/// Making a page takes milliseconds, so it happens off the threads that serve connections.
async fn make(app: Arc<App>, job: Job, page_key: String) -> Page {
    let made = tokio::task::spawn_blocking(move || {
        if job.twist.is_none() {
            app.cache.page_or_make(&page_key, || job.page(&app))
        } else {
            job.page(&app)
        }
    });
    // The only way to fail is that the runtime is going down, and then nobody reads the answer.
    made.await.unwrap_or(Page {
        body: Bytes::new(),
        rows: 0,
    })
}

fn is_on_the_wire(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ConnResetMidBody
            | Kind::TruncatedGzip
            | Kind::TruncatedJson
            | Kind::Stall
            | Kind::SlowDrip
            | Kind::WrongContentLength
    )
}
