//! `tidegate`: the operator's command line, a client of the coordinator's HTTP API.
//!
//! Read [`args`] for what can be typed, [`commands`] for what each verb does, [`requests`] for what the
//! coordinator is asked and [`client`] for how. Results go to stdout ([`output`]), everything else to stderr.

mod args;
mod client;
mod commands;
mod failure;
mod items;
mod output;
mod pace;
mod progress;
mod requests;
mod show;
mod upload;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    shared::telemetry::init_logs("error");
    match commands::execute(cli).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::say(&format!("error: {failure}"));
            ExitCode::from(failure.exit)
        }
    }
}
