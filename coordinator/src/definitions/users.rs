//! The accounts on the broker: one for each role, each allowed what its role needs and nothing else.
//!
//! A permission is a regular expression over the names of exchanges and queues, for three kinds of things that
//! one can do to them: *configure* (declare, delete), *write* (publish to an exchange; bind a queue) and *read*
//! (consume, get and purge a queue; bind to an exchange). The default exchange goes by the name `amq.default`.

use serde::Serialize;
use shared::topology::{ASK, CONTROL, DEAD, OUTCOMES, PRESENCE, QUARANTINE, WORK};

/// What an account may be named in a password file and in `broker.url`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Declares the topology, and does nothing else: an init job.
    Topology,
    /// The coordinator, with `topology = "check"`.
    Coordinator,
    /// Every worker.
    Worker,
    /// Whoever reads figures over the management API.
    Monitor,
}

/// Regular expressions over names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Permissions {
    /// What may be declared and deleted.
    pub configure: String,
    /// What may be published to, and which queues may be bound.
    pub write: String,
    /// What may be consumed from, and which exchanges may be bound to.
    pub read: String,
}

impl User {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Topology,
        Self::Coordinator,
        Self::Worker,
        Self::Monitor,
    ];

    /// The account's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Topology => "tidegate-topology",
            Self::Coordinator => "tidegate-coordinator",
            Self::Worker => "tidegate-worker",
            Self::Monitor => "tidegate-monitor",
        }
    }

    /// What it may do in the management UI and API.
    #[must_use]
    pub fn tags(self) -> &'static [&'static str] {
        match self {
            Self::Monitor => &["monitoring"],
            Self::Topology | Self::Coordinator | Self::Worker => &[],
        }
    }

    /// What it may do over AMQP.
    #[must_use]
    pub fn permissions(self) -> Permissions {
        match self {
            Self::Topology => Permissions {
                configure: anything(),
                write: anything(),
                read: anything(),
            },
            Self::Coordinator => Permissions {
                configure: exactly(&[one_of(PRESENCE), one_of(ASK)]),
                // Answers to workers go through the default exchange (direct reply-to), which also leads to
                // every queue: the reason why no other role may write to it.
                write: exactly(&[
                    own(WORK),
                    own(QUARANTINE),
                    own(CONTROL),
                    one_of(PRESENCE),
                    one_of(ASK),
                    own("amq.default"),
                ]),
                // Work queues only for their depth: from RabbitMQ 4.3 on, looking needs some permission. So
                // does looking whether an exchange is there that one does not write to.
                read: exactly(&[
                    one_of(WORK),
                    own(OUTCOMES),
                    one_of(OUTCOMES),
                    own(DEAD),
                    own(PRESENCE),
                    one_of(PRESENCE),
                    own(ASK),
                    one_of(ASK),
                ]),
            },
            Self::Worker => Permissions {
                configure: exactly(&[one_of(CONTROL)]),
                write: exactly(&[
                    own(OUTCOMES),
                    own(DEAD),
                    own(PRESENCE),
                    own(ASK),
                    one_of(CONTROL),
                ]),
                read: exactly(&[one_of(WORK), own(CONTROL), one_of(CONTROL)]),
            },
            Self::Monitor => Permissions {
                configure: nothing(),
                write: nothing(),
                read: nothing(),
            },
        }
    }
}

fn nothing() -> String {
    "^$".to_owned()
}

fn anything() -> String {
    "^tidegate\\.".to_owned()
}

fn exactly(names: &[String]) -> String {
    format!("^({})$", names.join("|"))
}

/// The exchange, and the queue of the same name where there is one.
fn own(name: &str) -> String {
    name.replace('.', "\\.")
}

/// Every queue whose name begins with the exchange's.
fn one_of(exchange: &str) -> String {
    format!("{}\\..+", own(exchange))
}
