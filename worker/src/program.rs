//! A worker's program: command line, logs, exit code. Its `main.rs` says which handlers it has.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use shared::config::Config;
use shared::{exit, probe};

use crate::app::{self, StartError};
use crate::handler::Handler;
use crate::own::{OwnHandlers, OwnHandlersError};

/// Takes batches from RabbitMQ, does the work, stores the results and reports the outcomes.
///
/// Exit codes: 0 drained when asked, 1 a task died or handlers block too many threads, 2 usage, 69 RabbitMQ or
/// the sink cannot be reached, 78 configuration is wrong.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file. Default: tidegate.toml in the working folder, if there is one. Every key can also
    /// be set in the environment: TIDEGATE_ + section + __ + key.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Ask the worker that has this configuration whether it takes batches: exit code 0, or 1. `worker.listen`
    /// needs a fixed port.
    Health,
}

/// A worker with handlers of one's own, besides those that the configuration names.
///
/// ```no_run
/// use worker::{BatchContext, Handler, HandlerError, Output, Worker, async_trait};
///
/// struct Lengths;
///
/// #[async_trait]
/// impl Handler for Lengths {
///     type Input = Vec<String>;
///
///     async fn handle(&self, texts: Vec<String>, _: &BatchContext) -> Result<Output, HandlerError> {
///         Output::rows(texts.iter().map(String::len))
///     }
/// }
///
/// #[tokio::main(worker_threads = 1)]
/// async fn main() -> std::process::ExitCode {
///     Worker::new().serve("lengths", Lengths).run().await
/// }
/// ```
///
/// The runtime of `main` is the AMQP side's, and one thread is enough for it; as a runtime of the kind that could have
/// several, because that is woken up by other threads at less cost. Handlers run on `worker.threads` of
/// their own: one that blocks keeps other handlers waiting, and neither heartbeats nor probes.
///
/// Each pipeline needs its section in `tidegate.toml`, for the coordinator too; `[pipelines.lengths]` may be all of
/// it, and its deadline, retries, limits and sink stand there.
#[must_use = "a worker does nothing until it runs"]
pub struct Worker {
    own: Result<OwnHandlers, OwnHandlersError>,
    version: &'static str,
}

impl Default for Worker {
    fn default() -> Self {
        Self::new()
    }
}

impl Worker {
    /// A worker without handlers of its own.
    pub fn new() -> Self {
        Self {
            own: Ok(OwnHandlers::default()),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Gives batches of this pipeline to this handler. A name that cannot be, or that is served already, is told
    /// when the worker runs.
    pub fn serve(mut self, pipeline: &str, handler: impl Handler) -> Self {
        self.own = self
            .own
            .and_then(|own| own.with(pipeline, Arc::new(handler)));
        self
    }

    /// What `--version` says. Default: Tidegate's version.
    pub fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// Reads the command line, logs to stderr, works until SIGTERM, and gives the process's exit code. `--help`
    /// lists arguments and exit codes.
    pub async fn run(self) -> ExitCode {
        let arguments = self.arguments();
        shared::telemetry::init_logs("info");
        match self.execute(arguments).await {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                tracing::error!("{error}");
                ExitCode::from(error.exit_code())
            }
        }
    }

    /// Ends the process where clap does: after `--help`, and when the command line is wrong.
    fn arguments(&self) -> Arguments {
        let program = std::env::args_os().next().unwrap_or_default();
        let name = Path::new(&program).file_name().unwrap_or_default();
        let command = Arguments::command()
            .display_name(name.to_string_lossy().into_owned())
            .version(self.version);
        let matches = command.get_matches();
        Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    async fn execute(self, arguments: Arguments) -> Result<u8, StartError> {
        match arguments.command {
            None => app::run(arguments.config, self.own?).await,
            Some(Command::Health) => health(arguments.config.as_deref()),
        }
    }
}

fn health(config_file: Option<&Path>) -> Result<u8, StartError> {
    let worker = Config::load(config_file)?.worker;
    if worker.listen.port() == 0 {
        return Err(StartError::NoFixedPort);
    }
    probe::ready(worker.listen, worker.cert_file.as_deref())?;
    Ok(exit::OK)
}
