//! The broker: reachable, taking publishes, with everything that Tidegate needs on it.

use std::time::Instant;

use lapin::{BasicProperties, Connection};
use shared::broker::{self, BrokerError, Depth, Message, Verdict};
use shared::config::TopologyMode;
use shared::topology::{self, QUARANTINE, Queue, WORK};
use tokio::time::timeout;

use super::{Check, Doctor, PATIENCE, version};

/// A routing key that leads to no queue: they all end in a lane.
const NOWHERE: &str = "doctor";

impl Doctor {
    pub(super) async fn broker(&self) -> Vec<Check> {
        let asked = Instant::now();
        let connected = timeout(PATIENCE, self.connector.connect("doctor")).await;
        let connection = match connected {
            Ok(Ok(connection)) => connection,
            // These errors say themselves what to do.
            Ok(Err(error)) => return vec![Check::fail("broker", error.to_string())],
            Err(_) => {
                let address = self.connector.address();
                let detail = format!("{address} did not answer within {PATIENCE:?}");
                return vec![Check::fail("broker", detail).advise(
                    "look at the broker's load and at the network between; submissions are taken meanwhile",
                )];
            }
        };
        let detail = format!(
            "{} answered in {:.1?}",
            self.connector.address(),
            asked.elapsed()
        );
        let mut checks = vec![Check::ok("broker", detail)];
        checks.push(self.version().await);
        checks.push(self.publishing().await);
        let looked = timeout(PATIENCE, self.topology(&connection)).await;
        checks.extend(looked.unwrap_or_else(|_| {
            let detail = format!("not looked through within {PATIENCE:?}");
            vec![Check::fail("broker.topology", detail).advise("look at the broker's load")]
        }));
        self.connector.goodbye(connection).await;
        checks
    }

    async fn version(&self) -> Check {
        const NAME: &str = "broker.version";
        match timeout(PATIENCE, self.connector.greeting()).await {
            Ok(Ok(Some(greeting))) => version::check(&greeting.product, &greeting.version),
            Ok(Ok(None)) => Check::unknown(
                NAME,
                "the broker's greeting is not read over TLS: `rabbitmqctl version` knows",
            ),
            Ok(Err(error)) => Check::unknown(NAME, error.to_string()),
            Err(_) => Check::unknown(NAME, "the broker did not introduce itself in time"),
        }
    }

    /// Publishes to the work exchange what no queue takes: the broker answers that it found none.
    async fn publishing(&self) -> Check {
        const NAME: &str = "broker.publishing";
        let message = Message {
            exchange: WORK,
            routing_key: NOWHERE.to_owned(),
            properties: BasicProperties::default().with_message_id(NOWHERE.into()),
            body: Vec::new(),
        };
        let mut publisher = self.publishing.publisher();
        let answered = timeout(PATIENCE, publisher.publish(&[message])).await;
        let is_blocked = self.publishing.is_blocked().await;
        match answered {
            _ if is_blocked => Check::fail(NAME, "the broker takes no publishes now").advise(
                "memory or disk run short there (`rabbitmq-diagnostics alarms`): free some; batches stay in the \
                 ledger meanwhile",
            ),
            Ok(Ok(verdicts)) if verdicts == [Verdict::Unroutable] => {
                Check::ok(NAME, format!("{WORK} answers publishes"))
            }
            Ok(Ok(verdicts)) => Check::warn(
                NAME,
                format!("a message for no queue was answered with {verdicts:?}"),
            )
            .advise(format!("remove whatever is bound to {WORK} besides Tidegate's queues")),
            Ok(Err(error)) => Check::fail(NAME, error.to_string()),
            Err(_) => Check::fail(NAME, format!("no answer within {PATIENCE:?}"))
                .advise("look at the broker's load and its alarms"),
        }
    }

    async fn topology(&self, connection: &Connection) -> Vec<Check> {
        const NAME: &str = "broker.topology";
        let queues = topology::queues(self.config.pipelines.keys(), self.config.lanes);
        let mut problems = Vec::new();
        for exchange in topology::exchanges() {
            let checked = broker::check(
                connection,
                &[exchange],
                &[],
                self.connector.answer_timeout(),
            )
            .await;
            problems.extend(checked.err().map(|error| error.to_string()));
        }
        let mut waiting = 0;
        let mut put_aside = 0;
        for queue in &queues {
            match self.look(connection, queue).await {
                Ok(ready) if queue.name == QUARANTINE => put_aside = ready,
                Ok(ready) if queue.bound_to == WORK => waiting += u64::from(ready),
                Ok(_) => {}
                Err(error) => problems.push(error.to_string()),
            }
        }
        let topology = if problems.is_empty() {
            let compared = match self.config.broker.topology {
                TopologyMode::Declare => "with our arguments",
                TopologyMode::Check => {
                    "their arguments, which only declaring them would compare, are yours to check"
                }
            };
            Check::ok(
                NAME,
                format!(
                    "{} queues are there, {compared}; {waiting} messages wait for workers; what others have put \
                     there, and whether we may read, is not told over AMQP (`rabbitmqctl list_queues`, \
                     `list_permissions`)",
                    queues.len()
                ),
            )
        } else {
            let advice = match self.config.broker.topology {
                TopologyMode::Declare => {
                    "the coordinator puts there what is missing when it needs it; permissions and arguments are \
                     for you to mend"
                }
                TopologyMode::Check => "put there what is missing: the config says that you own it",
            };
            Check::fail(NAME, problems.join("; ")).advise(advice)
        };
        let quarantine = if put_aside == 0 {
            Check::ok("broker.quarantine", format!("{QUARANTINE} is empty"))
        } else {
            Check::warn(
                "broker.quarantine",
                format!("{put_aside} messages that belong to no known batch are in {QUARANTINE}"),
            )
            .advise("look at them in the RabbitMQ UI (headers say why they are there), then purge the queue")
        };
        vec![topology, quarantine, self.lanes(connection).await]
    }

    /// How many messages are ready in a queue, which has to have our arguments.
    async fn look(&self, connection: &Connection, queue: &Queue) -> Result<u32, BrokerError> {
        let patience = self.connector.answer_timeout();
        let name = queue.name.as_str();
        let depth = broker::depths(connection, [name], patience).await?;
        let Some(Depth::There { ready, .. }) = depth.get(name).copied() else {
            return Err(BrokerError::Missing {
                object: format!("queue {name}"),
                problem: "it was deleted, or never declared".into(),
            });
        };
        // Only a declare compares arguments; the queue is there, so it makes none. It binds it, too.
        if self.config.broker.topology == TopologyMode::Declare {
            broker::declare(connection, &[], std::slice::from_ref(queue), patience).await?;
        }
        Ok(ready)
    }

    /// Whether there were more lanes once.
    async fn lanes(&self, connection: &Connection) -> Check {
        const NAME: &str = "broker.lanes";
        let lanes = self.config.lanes;
        let next = format!("{}.{lanes}", topology::OUTCOMES);
        let patience = self.connector.answer_timeout();
        match broker::depths(connection, [next.as_str()], patience).await {
            Ok(depths) if depths.get(&next) == Some(&Depth::Missing) => {
                Check::ok(NAME, format!("{lanes}, and no queue of another"))
            }
            Ok(_) => Check::warn(
                NAME,
                format!("lanes is {lanes}, and there is a queue {next}: it was more once"),
            )
            .advise(
                "what is in the work queues of other lanes goes out again through those of today; let old workers \
                 end, then delete the old queues",
            ),
            Err(error) => Check::unknown(NAME, error.to_string()),
        }
    }
}
