//! What can go wrong between us and RabbitMQ, told apart by what somebody should do about it.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use crate::config::ConfigError;
use crate::tls::Untrusted;

/// A failed exchange with the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Nobody answers there.
    #[error(
        "RabbitMQ at {address} cannot be reached ({problem}): is it running, and is broker.url right?"
    )]
    Unreachable {
        /// Host, port, vhost.
        address: String,
        /// What the operating system says.
        problem: String,
    },
    /// Somebody answers, and it cannot be known that it is the broker, or it does not know us.
    #[error("RabbitMQ at {address} is not trusted: {problem}")]
    Untrusted {
        /// Host, port, vhost.
        address: String,
        /// Why, and what to do.
        problem: Untrusted,
    },
    /// The password or a certificate cannot be read any more.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// User or password are wrong, or the user may not use the vhost.
    #[error(
        "RabbitMQ at {address} refuses the login: check user and password in broker.url, or broker.password_file \
         (guest may only log in from the same machine)"
    )]
    LoginRefused {
        /// Host, port, vhost.
        address: String,
    },
    /// The vhost does not exist, or is closed to this user.
    #[error(
        "RabbitMQ at {address} does not open the vhost ({problem}): create it with `rabbitmqctl add_vhost`, \
         allow it with `rabbitmqctl set_permissions`, or correct broker.url"
    )]
    VhostRefused {
        /// Host, port, vhost.
        address: String,
        /// The broker's words.
        problem: String,
    },
    /// An exchange or queue exists with other arguments.
    #[error(
        "{object} exists with other arguments ({problem}): delete it when it is empty \
         (`rabbitmqctl delete_queue NAME`), or use another vhost"
    )]
    OtherArguments {
        /// Which exchange or queue.
        object: String,
        /// The broker's words, which name both values.
        problem: String,
    },
    /// An exchange or queue is not there.
    #[error("{object} does not exist ({problem})")]
    Missing {
        /// Which exchange or queue.
        object: String,
        /// The broker's words.
        problem: String,
    },
    /// The user may not do this.
    #[error(
        "not allowed: {object} ({problem}); give the user the permission with `rabbitmqctl set_permissions`"
    )]
    NotAllowed {
        /// What was tried.
        object: String,
        /// The broker's words.
        problem: String,
    },
    /// No answer within `broker.answer_timeout`.
    #[error("RabbitMQ did not answer in time: {0}")]
    Timeout(&'static str),
    /// The connection or channel is gone.
    #[error("lost RabbitMQ: {0}")]
    Lost(String),
    /// A publish was acknowledged without a confirm having been asked for: a bug in this program.
    #[error("the channel does not confirm publishes")]
    NotConfirming,
}

impl BrokerError {
    /// Whether trying again is pointless until a person has changed something.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Untrusted { .. }
                | Self::Config(_)
                | Self::LoginRefused { .. }
                | Self::VhostRefused { .. }
                | Self::OtherArguments { .. }
                | Self::NotAllowed { .. }
        )
    }

    /// An error while connecting to `address`.
    pub(super) fn connecting(address: &str, error: &lapin::Error) -> Self {
        let address = address.to_owned();
        match protocol_kind(error) {
            Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => {
                Self::LoginRefused { address }
            }
            Some(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)) => Self::VhostRefused {
                address,
                problem: error.to_string(),
            },
            _ => Self::reaching(&address, error),
        }
    }

    /// Anything that went wrong on the way to `address`.
    pub(super) fn reaching(address: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let address = address.to_owned();
        match Untrusted::find(
            error,
            "broker.ca_file",
            "broker.cert_file and broker.key_file",
        ) {
            Some(problem) => Self::Untrusted { address, problem },
            None => Self::Unreachable {
                address,
                problem: error.to_string(),
            },
        }
    }

    /// An error while doing something to `object`.
    pub(super) fn about(object: &str, error: &lapin::Error) -> Self {
        let object = object.to_owned();
        let problem = error.to_string();
        match protocol_kind(error) {
            Some(AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)) => {
                Self::OtherArguments { object, problem }
            }
            Some(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)) => Self::Missing { object, problem },
            Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => {
                Self::NotAllowed { object, problem }
            }
            _ => Self::Lost(problem),
        }
    }
}

fn protocol_kind(error: &lapin::Error) -> Option<AMQPErrorKind> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.kind().clone()),
        _ => None,
    }
}
