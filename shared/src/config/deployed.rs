//! What `deploy/` tells the programs is configuration that they take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use figment::Jail;

use super::*;

/// Where the manifests mount secrets.
const SECRETS: &str = "/secrets/";

fn kubernetes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes")
}

/// The variables that a manifest gives to its containers. Those from Secrets have a value made up here.
fn environment(manifest: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(kubernetes().join(manifest)).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut found = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = line.strip_prefix("- name: TIDEGATE_") else {
            continue;
        };
        let next = lines.iter().skip(index + 1).find(|l| !l.starts_with('#'));
        let value = match next.and_then(|line| line.strip_prefix("value: ")) {
            Some(value) => value.trim_matches('\'').to_owned(),
            None if name.starts_with("BROKER") => "amqp://u:p@rabbitmq:5672/tidegate".to_owned(),
            None => "postgres://u:p@postgres/tidegate".to_owned(),
        };
        found.insert(format!("TIDEGATE_{name}"), value);
    }
    found
}

/// Loads the manifests' file with these variables.
fn load(variables: &BTreeMap<String, String>) -> Result<Config, String> {
    load_file(&kubernetes().join("base/tidegate.toml"), variables)
}

/// Loads a file with these variables and no others, and secrets in a folder of the test.
#[expect(
    clippy::result_large_err,
    reason = "figment's jail wants its own error"
)]
fn load_file(file: &Path, variables: &BTreeMap<String, String>) -> Result<Config, String> {
    let mut loaded = Err(String::new());
    Jail::expect_with(|jail| {
        jail.clear_env();
        jail.create_dir("tokens")?;
        for token in ["operate", "read"] {
            jail.create_file(format!("tokens/{token}"), token)?;
        }
        let secrets = format!("{}/", jail.directory().display());
        for (name, value) in variables {
            jail.set_env(name, value.replace(SECRETS, &secrets));
        }
        loaded = Config::load(Some(file)).map_err(|error| error.to_string());
        Ok(())
    });
    loaded
}

#[test]
fn the_coordinator_listens_to_others_and_owns_no_topology() {
    let variables = environment("base/coordinator.yaml");
    let config = load(&variables).unwrap();
    assert_eq!(config.broker.topology, TopologyMode::Check);
    assert!(config.api.listen.ip().is_unspecified());
    assert!(matches!(config.ledger_url(), DatabaseUrl::Postgres(_)));

    let mut mistyped = variables;
    mistyped.insert("TIDEGATE_API__LISTENS".into(), "0.0.0.0:1".into());
    assert!(load(&mistyped).unwrap_err().contains("did you mean"));
}

#[test]
fn workers_write_to_a_database_that_they_share() {
    let config = load(&environment("base/worker.yaml")).unwrap();
    assert!(
        config.worker.listen.ip().is_unspecified(),
        "probes reach it"
    );
    assert!(matches!(config.sink_url(), DatabaseUrl::Postgres(_)));
}

#[test]
fn the_topology_job_needs_no_token() {
    let config = load(&environment("base/topology.yaml")).unwrap();
    assert!(config.api.listen.ip().is_loopback());
}

/// The files that compose mounts, with secrets in a folder of the test.
#[test]
fn compose_files_are_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let script = kubernetes().join("../compose/secrets.sh");
    let made = Command::new(script).arg(folder.path()).status().unwrap();
    assert!(made.success());
    let load = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        let here = folder.path().display().to_string();
        let file = folder.path().join(format!("here-{name}"));
        std::fs::write(&file, text.replace("/run/secrets", &here)).unwrap();
        load_file(&file, &BTreeMap::new()).unwrap()
    };
    let coordinator = load("coordinator.toml");
    assert_eq!(coordinator.broker.topology, TopologyMode::Check);
    let tokens = coordinator.api.all_tokens().unwrap();
    let roles: Vec<Role> = tokens.iter().map(|token| token.role).collect();
    assert_eq!(roles, [Role::Operate, Role::Read]);
    let worker = load("worker.toml");
    assert!(matches!(worker.sink_url(), DatabaseUrl::Postgres(_)));
}
