//! A pipeline whose batches take as long as they are told, in `sleeping-worker`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::api::line;
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The pipeline's name.
pub const PIPELINE: &str = "sleeps";
/// Which worker it is, for its program.
pub const WORKER_VARIABLE: &str = "WORKER";
/// While there is no such file in the folder, batches that are held do not end.
pub const GO: &str = "go";
/// Where each start is noted, in the folder.
pub const STARTS: &str = "starts";

/// What a batch is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// Its number in the run.
    pub n: u32,
    /// How long it takes; for ever, until [`GO`], if nothing is said.
    pub ms: Option<u64>,
}

/// What was done: its row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Done {
    /// The task's number.
    pub n: u32,
    /// The batch's id.
    pub batch: String,
    /// By whom.
    pub worker: String,
}

/// An installation with such batches.
#[derive(Debug)]
pub struct Sleeper<'a> {
    /// Its processes.
    pub stack: Stack<'a>,
}

impl<'a> Sleeper<'a> {
    /// A coordinator without workers; those that come have so many slots.
    pub async fn start(broker: &'a RabbitMq, slots: u32, drain_timeout: Duration) -> Result<Self> {
        let mut stack = Stack::new(broker, &format!("[pipelines.{PIPELINE}]\n"))?;
        stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
        stack.set("TIDEGATE_WORKER__SLOTS", slots.to_string());
        let drain_timeout = format!("{}ms", drain_timeout.as_millis());
        stack.set("TIDEGATE_WORKER__DRAIN_TIMEOUT", drain_timeout);
        stack.start_coordinator().await?;
        Ok(Self { stack })
    }

    /// Starts a worker under this name.
    pub async fn start_worker(&mut self, name: &str) -> Result<()> {
        self.stack.set(WORKER_VARIABLE, name);
        self.stack.start_worker_of("sleeping-worker", name).await
    }

    /// Lets those that are held end.
    pub fn let_go(&self) -> Result<()> {
        fs::write(self.folder().join(GO), "").context("letting batches go")
    }

    /// All starts so far, in order.
    pub fn starts(&self) -> Result<Vec<Done>> {
        let text = fs::read_to_string(self.folder().join(STARTS)).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// All rows that are stored.
    pub async fn rows(&self) -> Result<Vec<Done>> {
        let sink = self.stack.sink().await?;
        let texts = sink.texts("select cast(json as text) from results").await?;
        texts
            .iter()
            .map(|text| serde_json::from_str(text).with_context(|| text.clone()))
            .collect()
    }

    fn folder(&self) -> &Path {
        self.stack.scratch().path()
    }
}

/// A submission of these tasks, each under a key of its own.
pub fn lines(tasks: impl IntoIterator<Item = Task>) -> String {
    let one = |task: Task| line(&format!("key-{}", task.n), &json!(task));
    tasks.into_iter().map(one).collect()
}

/// The batches that a worker took over from another one, by its log.
#[must_use]
pub fn taken_over(log: &str) -> Vec<String> {
    let lines = log
        .lines()
        .filter(|line| line.contains("took over a batch"));
    let id = |line: &str| {
        let rest = line.split_once("batch.id=")?.1;
        Some(rest.split_whitespace().next()?.to_owned())
    };
    lines.filter_map(id).collect()
}
