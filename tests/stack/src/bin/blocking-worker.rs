//! A worker whose handler blocks its thread, deaf to everything, as a computation or a call of a C library does:
//! for as many milliseconds as the batch says.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use scenario::BLOCKING;
use serde_json::value::RawValue;
use shared::name::PipelineName;
use worker::handler::{BatchContext, Handler, HandlerError, Output, Rows};

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
        let row = RawValue::from_string(input.to_string()).expect("a number is JSON");
        Ok(Output {
            rows: Rows::Json(vec![row]),
            ..Output::default()
        })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    shared::telemetry::init_logs("info");
    let name = PipelineName::new(BLOCKING).expect("the name is well-formed");
    let config: Option<PathBuf> = None;
    let ended = worker::app::run_with(config, |registry| {
        let mut served = registry.get(&name).expect("it is configured").clone();
        served.handler = Arc::new(Blocking);
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
