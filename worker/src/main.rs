//! The worker: runs in the foreground until SIGTERM.

use std::process::ExitCode;

use worker::Worker;

/// One thread is the AMQP side's; handlers have their own. The multi-threaded runtime all the same: other threads wake
/// it with every delivery and every handler that ends, and it alone notices that it is awake already.
#[tokio::main(worker_threads = 1)]
async fn main() -> ExitCode {
    Worker::new().run().await
}
