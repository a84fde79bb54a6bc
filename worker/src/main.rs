//! The worker: runs in the foreground until SIGTERM.

use std::process::ExitCode;

use worker::Worker;

#[tokio::main]
async fn main() -> ExitCode {
    Worker::new().run().await
}
