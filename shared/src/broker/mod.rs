//! RabbitMQ, as both sides use it: connecting, declaring, publishing with confirms, consuming, acking, asking.
//!
//! Rules that lapin and RabbitMQ impose, kept here so that no stage has to know them: publishing and
//! consuming use separate connections (a blocked connection writes nothing, not even acks); lapin's own
//! recovery stays off (after it gives up, a consumer waits for ever); every await has a timeout; one task
//! owns each confirming channel (confirms are attributed wrongly otherwise).

mod acks;
mod asking;
mod connection;
mod declare;
mod depth;
mod error;
mod greeting;
mod pool;
mod publisher;
mod subscription;
mod transport;

pub use acks::{Ack, AckWindow};
pub use asking::{Answering, AskingChannel, Replies, Reply};
pub use connection::Connector;
pub use declare::{check, declare, declare_own_queue};
pub use depth::{Depth, depths};
pub use error::BrokerError;
pub use greeting::Greeting;
pub use pool::PublishingPool;
pub use publisher::{Message, Publisher, Verdict};
pub use subscription::{Deliveries, Settle};

/// AMQP's delivery mode of a message that need not survive: it is sent again before long.
pub const TRANSIENT: u8 = 1;
/// AMQP's delivery mode of a message that survives the broker's restart.
pub const PERSISTENT: u8 = 2;
