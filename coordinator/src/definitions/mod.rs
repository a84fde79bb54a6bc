//! RabbitMQ's definitions: virtual host, users with their permissions, exchanges, queues and bindings, as the
//! broker imports them (`load_definitions`, `rabbitmqctl import_definitions`). Made from the same description
//! as what the coordinator declares.

mod password;
mod users;

use std::path::Path;

use serde::Serialize;
use shared::config::Config;
use shared::topology::{self, Arguments, Exchange, Queue, Routing};

pub use password::PasswordError;
use password::PasswordHash;
pub use users::{Permissions, User};

/// Everything that the broker has to know.
#[derive(Debug, Serialize)]
pub struct Definitions {
    vhosts: [Vhost; 1],
    users: Vec<Account>,
    permissions: Vec<Granted>,
    exchanges: Vec<DefinedExchange>,
    queues: Vec<DefinedQueue>,
    bindings: Vec<Binding>,
}

#[derive(Debug, Serialize)]
struct Vhost {
    name: String,
}

#[derive(Debug, Serialize)]
struct Account {
    name: &'static str,
    /// Empty: nobody can log in with a password.
    password_hash: PasswordHash,
    hashing_algorithm: &'static str,
    tags: &'static [&'static str],
}

#[derive(Debug, Serialize)]
struct Granted {
    user: &'static str,
    vhost: String,
    #[serde(flatten)]
    permissions: Permissions,
}

#[derive(Debug, Serialize)]
struct DefinedExchange {
    name: &'static str,
    vhost: String,
    r#type: &'static str,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    arguments: Arguments,
}

#[derive(Debug, Serialize)]
struct DefinedQueue {
    name: String,
    vhost: String,
    durable: bool,
    auto_delete: bool,
    arguments: Arguments,
}

#[derive(Debug, Serialize)]
struct Binding {
    source: &'static str,
    vhost: String,
    destination: String,
    destination_type: &'static str,
    routing_key: String,
    arguments: Arguments,
}

impl Definitions {
    /// For the configured pipelines and lanes. `passwords` is a folder with a file for each user, named like
    /// it; without one nobody can log in until somebody sets the passwords.
    ///
    /// # Errors
    /// When a password cannot be read or is none.
    pub fn new(
        config: &Config,
        vhost: &str,
        passwords: Option<&Path>,
    ) -> Result<Self, PasswordError> {
        let account = |user: User| -> Result<Account, PasswordError> {
            Ok(Account {
                name: user.name(),
                password_hash: match passwords {
                    Some(folder) => PasswordHash::of_file(&folder.join(user.name()))?,
                    None => PasswordHash::none(),
                },
                hashing_algorithm: "rabbit_password_hashing_sha256",
                tags: user.tags(),
            })
        };
        let granted = |user: User| Granted {
            user: user.name(),
            vhost: vhost.to_owned(),
            permissions: user.permissions(),
        };
        let queues = topology::queues(config.pipelines.keys(), config.lanes);
        let exchanges = topology::exchanges();
        Ok(Self {
            vhosts: [Vhost {
                name: vhost.to_owned(),
            }],
            users: User::ALL
                .map(account)
                .into_iter()
                .collect::<Result<_, _>>()?,
            permissions: User::ALL.map(granted).into(),
            exchanges: exchanges.iter().map(|e| exchange(e, vhost)).collect(),
            bindings: queues.iter().map(|q| binding(q, vhost)).collect(),
            queues: queues.into_iter().map(|q| queue(q, vhost)).collect(),
        })
    }

    /// As the broker reads it.
    ///
    /// # Panics
    /// Never: everything in it can be written as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("texts and numbers are JSON");
        json + "\n"
    }
}

fn exchange(exchange: &Exchange, vhost: &str) -> DefinedExchange {
    DefinedExchange {
        name: exchange.name,
        vhost: vhost.to_owned(),
        r#type: match exchange.routing {
            Routing::Direct => "direct",
            Routing::Fanout => "fanout",
        },
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Arguments::new(),
    }
}

fn queue(queue: Queue, vhost: &str) -> DefinedQueue {
    DefinedQueue {
        name: queue.name,
        vhost: vhost.to_owned(),
        durable: true,
        auto_delete: false,
        arguments: queue.arguments,
    }
}

fn binding(queue: &Queue, vhost: &str) -> Binding {
    Binding {
        source: queue.bound_to,
        vhost: vhost.to_owned(),
        destination: queue.name.clone(),
        destination_type: "queue",
        routing_key: queue.routing_key.clone(),
        arguments: Arguments::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `deploy/rabbitmq/definitions.json` is what the default configuration needs.
    #[test]
    fn the_definitions_in_deploy_are_those_of_the_code() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rabbitmq/definitions.json");
        let written = std::fs::read_to_string(path).unwrap();
        let made = Definitions::new(&default_config(), "tidegate", None).unwrap();
        assert!(
            written == made.to_json(),
            "they have drifted: coordinator topology definitions --out deploy/rabbitmq/definitions.json"
        );
    }

    #[test]
    fn every_user_needs_its_password_file() {
        let folder = tempfile::tempdir().unwrap();
        let definitions = || Definitions::new(&default_config(), "tidegate", Some(folder.path()));
        for user in User::ALL {
            let refused = definitions().unwrap_err().to_string();
            assert!(refused.contains(user.name()), "{refused}");
            let file = folder.path().join(user.name());
            std::fs::write(&file, "\n").unwrap();
            let refused = definitions().unwrap_err().to_string();
            assert!(refused.contains("empty"), "{refused}");
            std::fs::write(&file, "hunter2\n").unwrap();
        }
        let json = definitions().unwrap().to_json();
        assert!(!json.contains("hunter2"), "{json}");
    }

    /// What a config file without anything in it gives.
    fn default_config() -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        Config::load(Some(file.path())).unwrap()
    }
}
