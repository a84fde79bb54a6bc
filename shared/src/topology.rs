//! Every exchange and queue of Tidegate, described once. The coordinator declares it, or checks it where
//! an operator owns it; workers never declare.
//!
//! All queues are durable quorum queues with an explicit, positive delivery limit: `-1` means "unlimited"
//! on RabbitMQ 4 and "drop at the first requeue" on 3.10. Queue arguments cannot be changed later, so
//! none of them depends on configuration.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::name::{Lane, PipelineName};

/// Batches on their way to workers; direct, routing key `<pipeline>.<lane>`.
pub const WORK: &str = "tidegate.work";
/// Outcomes on their way to the coordinator; direct, routing key `<lane>`.
pub const OUTCOMES: &str = "tidegate.outcomes";
/// Messages that nobody could read, and what the broker itself gave up on; fanout.
pub const DEAD: &str = "tidegate.dead";
/// What the coordinator found no batch for. Nobody consumes it: a person looks.
pub const QUARANTINE: &str = "tidegate.quarantine";
/// Workers' words on themselves; fanout, transient messages.
pub const PRESENCE: &str = "tidegate.presence";

/// The coordinator's words to all workers; fanout, transient messages.
pub const CONTROL: &str = "tidegate.control";
/// Workers' questions to the owner of a lane; direct, routing key `<lane>`, transient messages that are
/// answered through direct reply-to.
pub const ASK: &str = "tidegate.ask";

/// Header that says why a message was sent to [`DEAD`].
pub const HEADER_REASON: &str = "x-tidegate-reason";
/// Header that says more about it, for a person.
pub const HEADER_ERROR: &str = "x-tidegate-error";

/// Deliveries after which the broker itself gives up on a message. Attempts are counted in the ledger;
/// this only ends a loop that the ledger never hears of. Up to RabbitMQ 4.2 a drain's nacks count too,
/// so it has to survive many rolling restarts.
const WORK_DELIVERY_LIMIT: i64 = 1_000;
/// The same for queues that only the coordinator reads, where giving up would lose what is known.
const RECORD_DELIVERY_LIMIT: i64 = 1_000_000;
/// Ready messages at which a work queue refuses more: ten times the largest window that config allows.
const WORK_MAX_LENGTH: i64 = 100_000;

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// By equal routing key.
    Direct,
    /// To every bound queue.
    Fanout,
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// How it routes.
    pub routing: Routing,
}

/// A durable quorum queue and where its messages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The exchange that it is bound to.
    pub bound_to: &'static str,
    /// The binding's routing key.
    pub routing_key: String,
    /// `x-…` arguments.
    pub arguments: Arguments,
}

/// Arguments by name.
pub type Arguments = BTreeMap<&'static str, Argument>;

/// The value of a queue's argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// A word.
    Text(&'static str),
    /// A limit.
    Number(i64),
}

/// The exchanges.
#[must_use]
pub fn exchanges() -> Vec<Exchange> {
    vec![
        Exchange {
            name: WORK,
            routing: Routing::Direct,
        },
        Exchange {
            name: OUTCOMES,
            routing: Routing::Direct,
        },
        Exchange {
            name: DEAD,
            routing: Routing::Fanout,
        },
        Exchange {
            name: QUARANTINE,
            routing: Routing::Fanout,
        },
        Exchange {
            name: PRESENCE,
            routing: Routing::Fanout,
        },
        Exchange {
            name: CONTROL,
            routing: Routing::Fanout,
        },
        Exchange {
            name: ASK,
            routing: Routing::Direct,
        },
    ]
}

/// The queues for these pipelines and this number of lanes.
pub fn queues<'a>(pipelines: impl IntoIterator<Item = &'a PipelineName>, lanes: u16) -> Vec<Queue> {
    let mut queues = vec![
        record_queue(DEAD, DEAD, String::new()),
        record_queue(QUARANTINE, QUARANTINE, String::new()),
    ];
    for lane in Lane::all(lanes) {
        queues.push(record_queue(
            &outcomes_queue(lane),
            OUTCOMES,
            lane.to_string(),
        ));
    }
    for pipeline in pipelines {
        for lane in Lane::all(lanes) {
            queues.push(work_queue_spec(pipeline, lane));
        }
    }
    queues
}

/// The queue of a pipeline's lane.
#[must_use]
pub fn work_queue(pipeline: &PipelineName, lane: Lane) -> String {
    format!("{WORK}.{}", work_routing_key(pipeline, lane))
}

/// The routing key that leads to it.
#[must_use]
pub fn work_routing_key(pipeline: &PipelineName, lane: Lane) -> String {
    format!("{pipeline}.{lane}")
}

/// The queue of a lane's outcomes.
#[must_use]
pub fn outcomes_queue(lane: Lane) -> String {
    format!("{OUTCOMES}.{lane}")
}

fn work_queue_spec(pipeline: &PipelineName, lane: Lane) -> Queue {
    let mut arguments = quorum(WORK_DELIVERY_LIMIT);
    // At-least-once dead-lettering works only together with reject-publish; otherwise RabbitMQ
    // silently falls back to at-most-once.
    arguments.extend([
        ("x-dead-letter-exchange", Argument::Text(DEAD)),
        ("x-dead-letter-strategy", Argument::Text("at-least-once")),
        ("x-overflow", Argument::Text("reject-publish")),
        ("x-max-length", Argument::Number(WORK_MAX_LENGTH)),
    ]);
    Queue {
        name: work_queue(pipeline, lane),
        bound_to: WORK,
        routing_key: work_routing_key(pipeline, lane),
        arguments,
    }
}

fn record_queue(name: &str, exchange: &'static str, routing_key: String) -> Queue {
    Queue {
        name: name.to_owned(),
        bound_to: exchange,
        routing_key,
        arguments: quorum(RECORD_DELIVERY_LIMIT),
    }
}

fn quorum(delivery_limit: i64) -> Arguments {
    Arguments::from([
        ("x-queue-type", Argument::Text("quorum")),
        ("x-delivery-limit", Argument::Number(delivery_limit)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_is_a_quorum_queue_with_a_positive_limit() {
        let pipeline = PipelineName::new("gsc.slice").unwrap();
        let queues = queues([&pipeline], 2);
        let names: Vec<&str> = queues.iter().map(|q| q.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "tidegate.dead",
                "tidegate.quarantine",
                "tidegate.outcomes.0",
                "tidegate.outcomes.1",
                "tidegate.work.gsc.slice.0",
                "tidegate.work.gsc.slice.1"
            ]
        );
        for queue in &queues {
            let argument = |name| queue.arguments.get(name).copied();
            assert_eq!(
                argument("x-queue-type"),
                Some(Argument::Text("quorum")),
                "{}",
                queue.name
            );
            match argument("x-delivery-limit") {
                Some(Argument::Number(limit)) => assert!(limit > 0, "{}", queue.name),
                other => panic!("{}: {other:?}", queue.name),
            }
        }
    }
}
