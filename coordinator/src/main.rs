//! The coordinator: runs in the foreground until SIGTERM.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use coordinator::app::{self, StartError};
use coordinator::provision;
use shared::config::Config;
use shared::{exit, probe};

/// Accepts runs, lets out as many batches as the workers can take, and knows what became of each.
///
/// Exit codes: 0 stopped when asked, 1 a task died, 2 usage, 69 RabbitMQ cannot be reached,
/// 78 configuration is wrong, contradicts what the broker or database has, or leads to one that cannot be verified.
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
    /// Prepare a broker for a coordinator with topology = "check".
    #[command(subcommand, arg_required_else_help = true)]
    Topology(TopologyCommand),
    /// Ask the coordinator that has this configuration whether it is ready: exit code 0, or 1.
    Health,
}

#[derive(Subcommand)]
enum TopologyCommand {
    /// Declare exchanges and queues as the user of broker.url, and end.
    Declare,
    /// Print what RabbitMQ imports as definitions: virtual host, users, permissions, exchanges, queues.
    Definitions {
        /// The virtual host.
        #[arg(long, value_name = "NAME", default_value = "tidegate")]
        vhost: String,
        /// Folder with the users' passwords, each in a file named like the user. Only their salted hashes are
        /// written. Without it nobody can log in until passwords are set.
        #[arg(long, value_name = "FOLDER")]
        passwords: Option<PathBuf>,
        /// Write to this file.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    shared::telemetry::init_logs("info");
    match execute(arguments).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn execute(arguments: Arguments) -> Result<u8, StartError> {
    let config = arguments.config;
    match arguments.command {
        None => return app::run(config).await,
        Some(Command::Health) => {
            let api = Config::load(config.as_deref())?.api;
            probe::ready(api.listen, api.cert_file.as_deref())?;
        }
        Some(Command::Topology(TopologyCommand::Declare)) => {
            provision::declare(config.as_deref()).await?;
        }
        Some(Command::Topology(TopologyCommand::Definitions {
            vhost,
            passwords,
            out,
        })) => {
            let (passwords, out) = (passwords.as_deref(), out.as_deref());
            provision::write_definitions(config.as_deref(), &vhost, passwords, out)?;
        }
    }
    Ok(exit::OK)
}
