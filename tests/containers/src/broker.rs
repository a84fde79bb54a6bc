//! RabbitMQ: one node, or three that are a cluster. Everybody reaches it as `rabbitmq`.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::wait;
use serde_json::Value;

use crate::docker::{Container, Network, Options};
use crate::images;

/// A node has started, and the cluster is whole, within this.
const START_LIMIT: Duration = Duration::from_mins(3);
/// The nodes of a cluster know each other by it, and nobody else is on their network.
const COOKIE: &str = "-setcookie tidegate-test";
const SETTINGS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../deploy/kubernetes/components/rabbitmq-single/rabbitmq.conf"
);

/// How many nodes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// One, which imports everything.
    Single,
    /// Three, which import users alone: queues that one node imports would have one member.
    Cluster,
}

/// The nodes.
#[derive(Debug)]
pub struct Broker {
    /// In the order in which they started.
    pub nodes: Vec<Container>,
}

impl Broker {
    /// Starts RabbitMQ with the definitions that `coordinator topology definitions` wrote; files go into `folder`.
    pub async fn start(
        network: &Network,
        folder: &Path,
        size: Size,
        definitions: &str,
    ) -> Result<Self> {
        let mut settings = fs::read_to_string(SETTINGS).context(SETTINGS)?;
        let mut definitions: Value = serde_json::from_str(definitions)?;
        let names: &[&str] = match size {
            Size::Single => &["rabbitmq"],
            Size::Cluster => &["rabbitmq-1", "rabbitmq-2", "rabbitmq-3"],
        };
        if size == Size::Cluster {
            settings.push_str("cluster_formation.peer_discovery_backend = classic_config\n");
            for (number, name) in (1..).zip(names) {
                let key = format!("cluster_formation.classic_config.nodes.{number}");
                writeln!(settings, "{key} = rabbit@{name}")?;
            }
            let all = definitions.as_object_mut().context("an object")?;
            all.retain(|kind, _| ["vhosts", "users", "permissions"].contains(&kind.as_str()));
        }
        fs::write(folder.join("definitions.json"), definitions.to_string())?;
        fs::write(folder.join("rabbitmq.conf"), settings)?;
        let mount = |file: &str, path: &str| format!("{}:{path}:ro", folder.join(file).display());
        let options = Options::new()
            .with(&[
                "--volume",
                &mount("definitions.json", "/definitions/definitions.json"),
            ])
            .with(&[
                "--volume",
                &mount("rabbitmq.conf", "/etc/rabbitmq/conf.d/50-tidegate.conf"),
            ])
            .with(&[
                "--env",
                &format!("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS={COOKIE}"),
            ])
            .with(&["--env", &format!("RABBITMQ_CTL_ERL_ARGS={COOKIE}")]);
        let mut nodes = Vec::new();
        for name in names {
            let options =
                options
                    .clone()
                    .with(&["--hostname", name, "--network-alias", "rabbitmq"]);
            nodes.push(Container::run(
                network,
                name,
                &images::rabbitmq(),
                &options,
                &[],
            )?);
        }
        let broker = Self { nodes };
        broker.wait_until_ready().await?;
        Ok(broker)
    }

    /// Waits until every node serves, and knows all others.
    pub async fn wait_until_ready(&self) -> Result<()> {
        let expected = self.nodes.len();
        for node in &self.nodes {
            wait::until("RabbitMQ to be ready", START_LIMIT, async || {
                node.ensure_running()?;
                let ready =
                    node.succeeds(&["rabbitmq-diagnostics", "-q", "check_port_connectivity"])?
                        && running_nodes(node)? == expected;
                Ok(ready.then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// The node that this user publishes to: who loses it has to find another one.
    pub fn publishing_node_of(&self, user: &str) -> Result<&Container> {
        let command = [
            "rabbitmqctl",
            "-q",
            "list_connections",
            "user",
            "pid",
            "client_properties",
        ];
        let listed = self.nodes[0].exec(&command)?;
        let mut publishing = listed
            .lines()
            .filter(|line| line.starts_with(user) && line.contains("(publish)"));
        let is_its_node =
            |line: &str, node: &Container| line.contains(&format!("<rabbit@{}.", node.alias));
        let found =
            publishing.find_map(|line| self.nodes.iter().find(|node| is_its_node(line, node)));
        found.with_context(|| format!("{user} publishes to no node: {listed}"))
    }

    /// Insists that each of Tidegate's queues that last is a quorum queue with a member on each node, and gives their
    /// number.
    pub fn ensure_replicated(&self) -> Result<usize> {
        let columns = ["name", "type", "members"];
        let mut command = vec!["rabbitmqctl", "-q", "--vhost", "tidegate", "list_queues"];
        command.extend(["--formatter", "json"]);
        command.extend(columns);
        let queues: Vec<Value> = serde_json::from_str(&self.nodes[0].exec(&command)?)?;
        let lasting = |queue: &&Value| queue["type"] != "classic";
        let mut count = 0;
        for queue in queues.iter().filter(lasting) {
            let members = queue["members"].as_array().map_or(0, Vec::len);
            ensure!(members == self.nodes.len(), "{queue} has {members} members");
            count += 1;
        }
        ensure!(count > 0, "there are no queues that last: {queues:?}");
        Ok(count)
    }
}

/// How many nodes this one knows to run.
fn running_nodes(node: &Container) -> Result<usize> {
    let status = node.exec(&["rabbitmqctl", "cluster_status", "--formatter", "json"])?;
    let status: Value = serde_json::from_str(&status)?;
    Ok(status["running_nodes"].as_array().map_or(0, Vec::len))
}
