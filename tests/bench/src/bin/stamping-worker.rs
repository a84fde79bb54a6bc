//! A worker whose handler only says how long its batch took to get to it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bench::stamp::{self, PIPELINE, Stamped, WAITED};
use shared::name::PipelineName;
use worker::handler::{BatchContext, Handler, HandlerError, Output};
use worker::registry::Served;

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
    shared::telemetry::init_logs("warn");
    let served = Served {
        handler: Arc::new(Stamping),
        deadline: Duration::from_mins(1),
        sink: false,
    };
    let name = PipelineName::new(PIPELINE).expect("the name is well-formed");
    match worker::app::run_with(None::<PathBuf>, |registry| registry.serve(name, served)).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
