//! A worker whose handler blocks its thread, deaf to everything, as a computation or a call of a C library does:
//! for as many milliseconds as the batch says.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use scenario::BLOCKING;
use worker::{BatchContext, Handler, HandlerError, Output, Worker, async_trait};

struct Blocking;

#[async_trait]
impl Handler for Blocking {
    type Input = u64;

    async fn handle(&self, input: u64, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let noted = OpenOptions::new()
            .create(true)
            .append(true)
            .open("starts")
            .and_then(|mut file| writeln!(file, "{} {input}", ctx.batch.id));
        noted.map_err(|error| HandlerError::retry(error.to_string()))?;
        std::thread::sleep(Duration::from_millis(input));
        Output::rows([input])
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    Worker::new().serve(BLOCKING, Blocking).run().await
}
