//! `search-console-emulator`: the emulator as a program, for the demo and for clients in other languages.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use emulator::{Config, Emulator, TestAccount, write_user_file};
use tokio::signal::unix::{SignalKind, signal};

/// The address of the service account that `--write-credentials` makes.
const ACCOUNT: &str = "tidegate@search-console-emulator.iam.gserviceaccount.com";
/// The exit code for a wrong configuration (`EX_CONFIG` in BSD's `sysexits.h`).
const EXIT_CONFIG: u8 = 78;

/// A local stand-in for Google's Search Console API. Prints its address in one line and serves until SIGTERM.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Settings in TOML; every key has a default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen, in place of the configured address. Loopback only, without a public URL; port 0 takes a
    /// free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Under which URL clients reach it, such as `http://emulator:8500` in a container network.
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Print the bare URL instead of `listening on URL`.
    #[arg(long)]
    print_addr: bool,
    /// Make a service account that this emulator accepts, and write its JSON key file here.
    #[arg(long, value_name = "FILE")]
    write_credentials: Option<PathBuf>,
    /// Write the JSON file of an OAuth user that this emulator accepts.
    #[arg(long, value_name = "FILE")]
    write_credentials_user: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match config(&arguments) {
        Err(error) => fail(&error, ExitCode::from(EXIT_CONFIG)),
        Ok(config) => match run(&arguments, config).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, ExitCode::FAILURE),
        },
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a program says on standard error why it ends"
)]
fn fail(error: &anyhow::Error, code: ExitCode) -> ExitCode {
    eprintln!("search-console-emulator: {error:#}");
    code
}

fn config(arguments: &Arguments) -> anyhow::Result<Config> {
    let mut config = match &arguments.config {
        Some(path) => {
            Config::read(path).with_context(|| format!("configuration {}", path.display()))?
        }
        None => Config::default(),
    };
    config.listen = arguments.listen.unwrap_or(config.listen);
    config.public_url = arguments.public_url.clone().or(config.public_url);
    anyhow::ensure!(
        config.public_url.is_some() || config.listen.ip().is_loopback(),
        "listen: only loopback addresses, nothing here is protected; in a network of its own, add --public-url"
    );
    Ok(config)
}

async fn run(arguments: &Arguments, mut config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let account = match &arguments.write_credentials {
        Some(path) => Some((TestAccount::generate(ACCOUNT)?, path)),
        None => None,
    };
    config
        .service_accounts
        .extend(account.iter().map(|(account, _)| account.registration()));
    let client = config.oauth_clients.first().cloned().unwrap_or_default();
    let running = Emulator::start(config).await?;
    let url = running.url();
    if let Some((account, path)) = &account {
        account
            .write_key_file(path, &url)
            .with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &arguments.write_credentials_user {
        write_user_file(path, &client, &url).with_context(|| path.display().to_string())?;
    }
    let line = if arguments.print_addr {
        url
    } else {
        format!("listening on {url}")
    };
    writeln!(std::io::stdout(), "{line}").context("standard output")?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("SIGINT")?,
    }
    running.stop().await;
    Ok(())
}
