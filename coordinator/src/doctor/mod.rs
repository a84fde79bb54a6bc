//! The doctor: looks at everything that this coordinator relies on, with its own credentials, and says what
//! is wrong and what to do about it. It changes nothing, but for a queue's binding that is missing and ours to
//! declare: that comes back.

mod broker;
mod levels;
mod version;
mod workers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shared::broker::{Connector, PublishingPool};
use shared::config::Config;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::ledger::OperatorViews;
use crate::levels::SharedLevels;
use crate::presence::SharedFleet;

/// Longest wait for any one part: whoever asks is waiting.
const PATIENCE: Duration = Duration::from_secs(10);
/// A ledger that takes longer for a small question slows everything down.
const SLOW_LEDGER: Duration = Duration::from_millis(200);

/// What the doctor needs.
pub struct Doctor {
    /// What should be there.
    pub config: Config,
    /// How to reach the broker.
    pub connector: Connector,
    /// Tries whether publishing works.
    pub publishing: PublishingPool,
    /// Is asked a question.
    pub ledger: Arc<dyn OperatorViews>,
    /// The live workers.
    pub fleet: SharedFleet,
    /// Whether something piles up.
    pub levels: SharedLevels,
}

/// What the doctor found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diagnosis {
    /// The worst of all findings.
    pub finding: Finding,
    /// What was looked at, in order.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Its name, such as `broker.version`.
    pub name: String,
    /// How it is.
    pub finding: Finding,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How something is, from good to bad.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// As it should be.
    Ok,
    /// It cannot be known from here; the detail says who knows.
    Unknown,
    /// It works, and somebody should look at it.
    Warn,
    /// It does not work.
    Fail,
}

impl Finding {
    /// The word that stands for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Check {
    fn new(name: &str, finding: Finding, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            finding,
            detail: detail.into(),
            advice: None,
        }
    }

    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Finding::Ok, detail)
    }

    fn unknown(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Finding::Unknown, detail)
    }

    fn warn(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Finding::Warn, detail)
    }

    fn fail(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Finding::Fail, detail)
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..self
        }
    }
}

impl Doctor {
    /// Looks at everything.
    pub async fn examine(&self) -> Diagnosis {
        let (broker, ledger) = tokio::join!(self.broker(), self.ledger());
        let mut checks = broker;
        checks.push(consumer_timeout(&self.config));
        checks.push(protection(&self.config));
        checks.extend(ledger);
        checks.push(levels::check(&self.levels.view()));
        checks.extend(self.workers().await);
        checks.push(Check::unknown(
            "sink",
            "only workers reach the sink; one that cannot says so in its log and gives its batches back",
        ));
        let finding = checks.iter().map(|check| check.finding);
        // What cannot be known says nothing about the whole.
        let finding = finding
            .filter(|finding| *finding != Finding::Unknown)
            .max()
            .unwrap_or(Finding::Ok);
        Diagnosis { finding, checks }
    }

    /// Whether it answers, and how fast.
    async fn ledger(&self) -> Vec<Check> {
        const NAME: &str = "ledger";
        let address = self.config.ledger_url().address();
        let asked = Instant::now();
        let check = match timeout(PATIENCE, self.ledger.pipelines()).await {
            Ok(Ok(counts)) => {
                let took = asked.elapsed();
                let pending: u64 = counts.iter().map(|counts| counts.pending).sum();
                let detail =
                    format!("{address} answered in {took:.1?}; {pending} batches are pending");
                if took > SLOW_LEDGER {
                    Check::warn(NAME, detail).advise(
                        "a slow ledger slows dispatch and settlement: look at its disk, or at the network between",
                    )
                } else {
                    Check::ok(NAME, detail)
                }
            }
            Ok(Err(error)) => Check::fail(NAME, format!("{address}: {error}")).advise(
                "look at the database and its disk; the coordinator goes on when it answers",
            ),
            Err(_) => Check::fail(
                NAME,
                format!("{address} did not answer within {PATIENCE:?}"),
            )
            .advise("look for a lock that somebody holds, or a full disk"),
        };
        vec![check]
    }
}

/// Whether the broker may take a delivery back while its handler still may run.
fn consumer_timeout(config: &Config) -> Check {
    const NAME: &str = "broker.consumer_timeout";
    let deadlines = config
        .pipelines
        .iter()
        .map(|(name, pipeline)| (pipeline.deadline, name));
    let Some((deadline, pipeline)) = deadlines.max() else {
        return Check::ok(NAME, "there are no pipelines");
    };
    // A delivery waits in the prefetch buffer for as long as those before it take.
    let (worker, timeout) = (&config.worker, config.broker.consumer_timeout);
    let before = worker.look_ahead.div_ceil(worker.slots);
    let longest = deadline.get() * (1 + before);
    let detail = format!(
        "a batch of {pipeline} may run for {deadline} and wait that long {before} times before (look_ahead {} over \
         {} slots): {longest:?} in all; by broker.consumer_timeout RabbitMQ takes a delivery back after {timeout}, \
         what it really does cannot be read over AMQP",
        worker.look_ahead, worker.slots,
    );
    if longest < timeout.get() {
        Check::ok(NAME, detail)
    } else {
        Check::warn(NAME, detail).advise(format!(
            "set consumer_timeout in rabbitmq.conf well above {} ms and broker.consumer_timeout to the same, or shorten pipelines.{pipeline}.deadline or \
             worker.look_ahead; a delivery that is taken back runs twice and is stored once",
            longest.as_millis()
        ))
    }
}

/// Whether others could read along or answer in somebody's place.
fn protection(config: &Config) -> Check {
    const NAME: &str = "tls";
    let found = config.unprotected().into_iter();
    let found: Vec<String> = found
        .map(|found| format!("{}: {}", found.key, found.problem))
        .collect();
    if found.is_empty() {
        return Check::ok(
            NAME,
            "what leaves this machine is encrypted and verified, by the coordinator's config",
        );
    }
    Check::warn(NAME, found.join("; ")).advise(
        "deploy/README.md describes certificates; require_tls = true refuses to start without them",
    )
}

#[cfg(test)]
mod tests;
