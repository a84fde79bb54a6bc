//! The worker: runs in the foreground until SIGTERM.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Takes batches from RabbitMQ, does the work, stores the results and reports the outcomes.
///
/// Exit codes: 0 drained when asked, 1 a task died or handlers block too many threads, 2 usage, 69 RabbitMQ or the sink cannot be reached,
/// 78 configuration is wrong.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file. Default: tidegate.toml in the working folder, if there is one. Every key can also
    /// be set in the environment: TIDEGATE_ + section + __ + key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// This thread is the AMQP side's; handlers have their own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    shared::telemetry::init_logs("info");
    match worker::app::run(arguments.config).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
