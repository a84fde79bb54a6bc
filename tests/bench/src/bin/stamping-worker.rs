//! A worker whose handler only says how long its batch took to get to it.

use std::process::ExitCode;

use bench::stamp::{self, PIPELINE, Stamped, WAITED};
use worker::{BatchContext, Handler, HandlerError, Output, Worker, async_trait};

struct Stamping;

#[async_trait]
impl Handler for Stamping {
    type Input = Stamped;

    async fn handle(&self, input: Stamped, _: &BatchContext) -> Result<Output, HandlerError> {
        let waited = input.wait_until(stamp::now()).as_micros();
        let waited = u64::try_from(waited).unwrap_or(u64::MAX);
        Ok(Output {
            statistics: [(WAITED.to_owned(), waited)].into(),
            ..Output::default()
        })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    Worker::new().serve(PIPELINE, Stamping).run().await
}
