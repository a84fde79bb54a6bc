//! A worker whose handler takes ten steps and says after each how far it has come. It notes each step, and waits
//! after half of them while there is a file named `hold`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use scenario::{RESUMING, STEPS};
use serde_json::value::RawValue;
use shared::name::PipelineName;
use worker::handler::{BatchContext, Handler, HandlerError, Output, Rows};

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
            while step == STEPS / 2 && Path::new("hold").exists() {
                if ctx.cancelled.is_cancelled() {
                    return Err(HandlerError::retry("held up until the end"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let row = RawValue::from_string(from.to_string()).expect("a number is JSON");
        Ok(Output {
            rows: Rows::Json(vec![row]),
            ..Output::default()
        })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    shared::telemetry::init_logs("info");
    let name = PipelineName::new(RESUMING).expect("the name is well-formed");
    let config: Option<PathBuf> = None;
    let ended = worker::app::run_with(config, |registry| {
        let mut served = registry.get(&name).expect("it is configured").clone();
        served.handler = Arc::new(Resuming);
        registry.serve(name, served);
    });
    match ended.await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
