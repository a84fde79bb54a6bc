//! A worker whose handler takes the whole process along when a batch says so, as a fault in a C library does.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use scenario::ABORTING;
use serde_json::Value;
use shared::name::PipelineName;
use worker::handler::{BatchContext, Handler, HandlerError, Output};
use worker::registry::Served;

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
    shared::telemetry::init_logs("info");
    let served = Served {
        handler: Arc::new(Aborting),
        deadline: Duration::from_mins(1),
        sink: true.into(),
    };
    let name = PipelineName::new(ABORTING).expect("the name is well-formed");
    let config: Option<PathBuf> = None;
    match worker::app::run_with(config, |registry| registry.serve(name, served)).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
