//! A worker that checks every page of a site.

use std::process::ExitCode;

use page_check::{Pages, Sites};
use worker::Worker;

#[tokio::main]
async fn main() -> ExitCode {
    Worker::new()
        .version(env!("CARGO_PKG_VERSION"))
        .serve("sites", Sites::default())
        .serve("pages", Pages::default())
        .run()
        .await
}
