//! The main job in containers: a sync from the emulator, and the insistence that its rows equal the truth.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coordinator::run::Run;
use harness::wait;
use scenario::search_console::compare;

use crate::docker::Container;
use crate::installation::{Installation, property};

/// Longest wait for a run to get anywhere.
const LIMIT: Duration = Duration::from_mins(10);

/// A sync that is under way.
#[derive(Debug)]
pub struct Sync {
    command: Container,
    properties: Vec<String>,
    days: u32,
}

impl Sync {
    /// `tidegate sync search-console … --watch --json` in a container, for the first so many properties.
    pub fn begin(installation: &Installation, properties: u32, days: u32) -> Result<Self> {
        let properties: Vec<String> = (0..properties).map(property).collect();
        let days_text = days.to_string();
        let mut arguments = vec!["sync", "search-console", "--watch", "--json"];
        arguments.extend(["--days", &days_text]);
        for property in &properties {
            arguments.extend(["--property", property]);
        }
        Ok(Self {
            command: installation.tidegate(&arguments)?,
            properties,
            days,
        })
    }

    /// Waits until so many more batches are completed than now, and insists that some are left. Gives the batches of a
    /// second.
    pub async fn progress(&self, installation: &Installation, batches: u64) -> Result<f64> {
        let (start, begun) = (self.run(installation).await?, Instant::now());
        let goal = start.batches.completed + batches;
        let run = wait::until("the run to go on", LIMIT, async || {
            let run = self.run(installation).await?;
            Ok((run.batches.completed >= goal).then_some(run))
        })
        .await?;
        self.ensure_unfinished(&run)?;
        let done = run.batches.completed - start.batches.completed;
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        Ok(done as f64 / begun.elapsed().as_secs_f64())
    }

    /// Insists that some of it is left to do: what happens now happens to a run that works.
    pub async fn ensure_under_way(&self, installation: &Installation) -> Result<()> {
        self.ensure_unfinished(&self.run(installation).await?)
    }

    fn ensure_unfinished(&self, run: &Run) -> Result<()> {
        ensure!(
            run.batches.finished() < run.batches.accepted,
            "the run of {} properties was over too early: {run:?}",
            self.properties.len()
        );
        Ok(())
    }

    /// The run, once there is one and the coordinator answers.
    async fn run(&self, installation: &Installation) -> Result<Run> {
        wait::until("the run to be known", LIMIT, async || {
            let runs = installation.api.runs().await.unwrap_or_default();
            Ok(runs.into_iter().next())
        })
        .await
    }

    /// Waits for its end; insists that every batch is completed and every slice is as the emulator has it.
    pub async fn finish(self, installation: &Installation) -> Result<Run> {
        wait::until("the run to end", LIMIT, async || {
            let run = self.run(installation).await?;
            Ok(run.has_ended().then_some(()))
        })
        .await?;
        let code = self.command.wait()?;
        let (stdout, stderr) = self.command.logs()?;
        ensure!(code == 0, "tidegate ended with {code}:\n{stdout}{stderr}");
        let run: Run = serde_json::from_str(&stdout).with_context(|| stdout.clone())?;
        ensure!(run.batches.completed == run.batches.accepted, "{run:?}");
        let properties: Vec<&str> = self.properties.iter().map(String::as_str).collect();
        let sink = installation.sink().await?;
        let report = compare(&sink, &installation.emulator, &properties, self.days, 0).await?;
        ensure!(report.is_good(), "{report}");
        eprintln!("{} batches, {report}", run.batches.completed);
        Ok(run)
    }
}
