//! The whole of Tidegate around a worker's program.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use coordinator::run::{DeadBatch, Run};
use harness::api::line;
use harness::rabbitmq;
use harness::stack::Stack;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest wait for a run.
const LIMIT: Duration = Duration::from_mins(2);
/// The name that [`Installation::start`] gives to its worker.
const WORKER: &str = "worker";

/// RabbitMQ, a coordinator and one worker, as processes, on free ports, in a folder of their own. All of it ends
/// with the test.
///
/// RabbitMQ has to be installed. The coordinator's program is taken from the folder of the test's own programs, or
/// from the one that `TIDEGATE_PROGRAMS` names.
#[derive(Debug)]
pub struct Installation {
    /// Everything that a test may do to it: settings, further workers, crashes, logs, the CLI.
    pub stack: Stack<'static>,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its counts and statistics.
    pub run: Run,
    /// Its dead batches, each with its error.
    pub dead: Vec<DeadBatch>,
}

impl Installation {
    /// Starts everything. `config` is the text of a `tidegate.toml`, `program` the worker's, in a test of the same
    /// package `env!("CARGO_BIN_EXE_name")`. The broker is shared by all tests of a process, and its virtual host,
    /// address, ports and files are the installation's own, whatever `config` says of them.
    pub async fn start(config: &str, program: impl AsRef<Path>) -> Result<Self> {
        let mut stack = Stack::new(rabbitmq::shared(), config)?;
        stack.start_coordinator().await?;
        let program = program.as_ref().to_str().context("a path that is text")?;
        stack.start_worker_of(program, WORKER).await?;
        Ok(Self { stack })
    }

    /// Submits batches of a pipeline, each a key and a payload, as one run, and waits until it ends.
    pub async fn run<T: Serialize>(
        &self,
        pipeline: &str,
        batches: impl IntoIterator<Item = (&str, T)>,
    ) -> Result<Ended> {
        let mut lines = String::new();
        for (key, payload) in batches {
            lines += &line(key, &serde_json::to_value(payload)?);
        }
        let api = &self.stack.api;
        let run = api.submit(pipeline, lines).await?;
        Ok(Ended {
            run: api.wait_until_ended(run.run, LIMIT).await?,
            dead: api.dead(run.run).await?,
        })
    }

    /// All rows that are stored in the table `results`, in no order.
    pub async fn rows<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let sink = self.stack.sink().await?;
        let texts = sink.texts("select cast(json as text) from results").await?;
        let read = |text: &String| serde_json::from_str(text).with_context(|| text.clone());
        texts.iter().map(read).collect()
    }

    /// Asks the worker to stop, and gives its exit code: 0 when it drained.
    pub fn stop_worker(&mut self) -> Result<i32> {
        let worker = self.stack.worker(WORKER);
        let status = worker.terminate(LIMIT)?;
        status.code().context("the worker was killed")
    }

    /// What the worker has logged.
    pub fn worker_log(&mut self) -> Result<String> {
        self.stack.worker(WORKER).output()
    }
}
