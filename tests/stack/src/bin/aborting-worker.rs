//! A worker whose handler takes the whole process along when a batch says so, as a fault in a C library does.

use std::process::ExitCode;
use std::time::Duration;

use scenario::ABORTING;
use serde_json::Value;
use worker::{BatchContext, Handler, HandlerError, Output, Worker, async_trait};

struct Aborting;

#[async_trait]
impl Handler for Aborting {
    type Input = Value;

    async fn handle(&self, input: Value, _: &BatchContext) -> Result<Output, HandlerError> {
        // Long enough that the neighbours have started too.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if input == "abort" {
            std::process::abort();
        }
        Ok(Output::default())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    Worker::new().serve(ABORTING, Aborting).run().await
}
