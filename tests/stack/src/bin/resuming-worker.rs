//! A worker whose handler takes ten steps and says after each how far it has come. It notes each step, and waits
//! after half of them while there is a file named `hold`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use scenario::{RESUMING, STEPS};
use worker::{BatchContext, Handler, HandlerError, Output, Worker, async_trait};

struct Resuming;

fn note(step: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open("steps")?;
    writeln!(file, "{step}")
}

#[async_trait]
impl Handler for Resuming {
    type Input = serde_json::Value;

    async fn handle(&self, _: Self::Input, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let from: u32 = ctx.cursor()?.unwrap_or_default();
        for step in from..STEPS {
            note(step).map_err(|error| HandlerError::retry(error.to_string()))?;
            ctx.save_cursor(&(step + 1)).await?;
            ctx.progress((step + 1).into(), Some(STEPS.into()));
            while step == STEPS / 2 && Path::new("hold").exists() {
                if ctx.cancelled.is_cancelled() {
                    return Err(HandlerError::retry("held up until the end"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Output::rows([from])
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    Worker::new().serve(RESUMING, Resuming).run().await
}
