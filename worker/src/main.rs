//! The worker: runs in the foreground until SIGTERM.

use std::process::ExitCode;

use worker::Worker;

/// This thread is the AMQP side's; handlers have their own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    Worker::new().run().await
}
