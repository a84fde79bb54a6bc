//! What has to be on the broker before a coordinator with `topology = "check"` starts: declared by an init job
//! under an account of its own, or written as definitions that the broker imports.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use shared::broker::Connector;
use shared::config::{Config, TopologyMode};
use shared::name::Instance;

use crate::app::StartError;
use crate::definitions::Definitions;
use crate::topology::Topology;

/// Declares all exchanges and queues, and ends. What is there already stays as it is.
pub async fn declare(config_file: Option<&Path>) -> Result<(), StartError> {
    let mut config = Config::load(config_file)?;
    config.warn_of_unprotected();
    config.broker.topology = TopologyMode::Declare;
    let connector = Connector::new(&config.broker, &Instance::generate("topology"));
    let topology = Topology::new(&config, connector.clone());
    let connection = connector.connect_at_start("topology").await?;
    let declared = topology.ensure_on(&connection).await;
    connector.goodbye(connection).await;
    declared?;
    let queues = topology.queues().count();
    tracing::info!(queues, broker = %connector.address(), "the topology is there");
    Ok(())
}

/// Writes the definitions to `out`, or to standard output.
pub fn write_definitions(
    config_file: Option<&Path>,
    vhost: &str,
    passwords: Option<&Path>,
    out: Option<&Path>,
) -> Result<(), StartError> {
    let config = Config::load(config_file)?;
    let json = Definitions::new(&config, vhost, passwords)?.to_json();
    let written = match out {
        Some(path) => std::fs::write(path, json),
        None => io::stdout().write_all(json.as_bytes()),
    };
    written.map_err(|problem| StartError::Output {
        path: out.map_or_else(|| PathBuf::from("standard output"), Path::to_owned),
        problem,
    })
}
