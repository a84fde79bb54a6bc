//! A pipeline whose batches are a shell script.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::rabbitmq::RabbitMq;
use harness::stack::Stack;
use harness::wait;

/// The pipeline's name.
pub const PIPELINE: &str = "script";

/// Notes worker, time and payload; waits as long as its worker is held up; answers with one row.
const SCRIPT: &str = r#"
payload=$(cat)
printf '%s %s %s\n' "$WORKER" "$(date +%s%N)" "$payload" >>starts
while [ -e "hold-$WORKER" ]; do sleep 0.02; done
printf '{"worker":"%s","payload":%s}\n' "$WORKER" "$payload"
"#;

/// An installation whose batches run a shell script.
#[derive(Debug)]
pub struct Scripted<'a> {
    /// Its processes.
    pub stack: Stack<'a>,
    folder: PathBuf,
}

/// One start of a batch's script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Which worker.
    pub worker: String,
    /// When, by the wall clock, since 1970.
    pub at: Duration,
    /// The batch's payload.
    pub payload: String,
}

impl<'a> Scripted<'a> {
    /// A coordinator without workers. `settings` are added to the pipeline's section.
    pub async fn start(broker: &'a RabbitMq, settings: &str) -> Result<Self> {
        let mut scripted = Self::prepare(broker, settings)?;
        scripted.stack.start_coordinator().await?;
        Ok(scripted)
    }

    /// The same, before anything runs.
    pub fn prepare(broker: &'a RabbitMq, settings: &str) -> Result<Self> {
        let pipeline = format!(
            "[pipelines.{PIPELINE}]\nhandler = \"exec\"\ncommand = [\"sh\", \"script.sh\"]\n\
             environment = [\"WORKER\"]\n{settings}\n"
        );
        let mut stack = Stack::new(broker, &pipeline)?;
        let folder = stack.scratch().path().to_owned();
        fs::write(folder.join("script.sh"), SCRIPT)?;
        stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
        Ok(Self { stack, folder })
    }

    /// Starts a worker under this name.
    pub async fn start_worker(&mut self, name: &str) -> Result<()> {
        self.stack.set("WORKER", name);
        self.stack.start_worker(name).await
    }

    /// From now on, batches that start on this worker do not end.
    pub fn hold(&self, worker: &str) -> Result<()> {
        fs::write(self.folder.join(format!("hold-{worker}")), "").context("holding up a worker")
    }

    /// Lets them end.
    pub fn let_go(&self, worker: &str) -> Result<()> {
        fs::remove_file(self.folder.join(format!("hold-{worker}"))).context("letting a worker go")
    }

    /// All starts so far, in order.
    pub fn starts(&self) -> Result<Vec<Start>> {
        let text = fs::read_to_string(self.folder.join("starts")).unwrap_or_default();
        text.lines().map(read_start).collect()
    }

    /// Waits until this many batches were started on a worker.
    pub async fn wait_for_starts(
        &self,
        worker: &str,
        count: usize,
        limit: Duration,
    ) -> Result<Vec<Start>> {
        let what = format!("{count} batches to start on {worker}");
        wait::until(&what, limit, async || {
            let starts = self.starts()?;
            let here: Vec<Start> = starts
                .into_iter()
                .filter(|start| start.worker == worker)
                .collect();
            Ok((here.len() >= count).then_some(here))
        })
        .await
    }
}

fn read_start(line: &str) -> Result<Start> {
    let mut words = line.splitn(3, ' ');
    let mut next = || words.next().with_context(|| format!("too short: {line:?}"));
    Ok(Start {
        worker: next()?.to_owned(),
        at: Duration::from_nanos(next()?.parse()?),
        payload: next()?.to_owned(),
    })
}
