//! The coordinator: runs in the foreground until SIGTERM.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Accepts runs, lets out as many batches as the workers can take, and knows what became of each.
///
/// Exit codes: 0 stopped when asked, 1 a task died, 2 usage, 69 RabbitMQ cannot be reached,
/// 78 configuration is wrong or contradicts what the broker or database has.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file. Default: tidegate.toml in the working folder, if there is one. Every key can also
    /// be set in the environment: TIDEGATE_ + section + __ + key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    shared::telemetry::init_logs("info");
    match coordinator::app::run(arguments.config).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
