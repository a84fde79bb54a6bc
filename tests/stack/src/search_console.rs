//! A sync from the emulator.

use std::time::Duration;

use anyhow::{Result, ensure};
use coordinator::run::Run;
use harness::emulator::{Admin, Emulator, NO_LIMITS, NO_QUOTAS};
use harness::postgres;
use harness::rabbitmq::RabbitMq;
use harness::stack::{Answer, Stack};
use harness::truth::{self, Sink, Wish, last_final_day};
use harness::wait;
use jiff::ToSpan;
use shared::search_console::SearchType;
use tokio::task::JoinHandle;

/// Properties that the emulator's account may read.
pub const READABLE: [&str; 2] = ["sc-domain:alpha.example", "https://beta.example/"];
/// The property that it may not.
pub const FORBIDDEN: &str = "https://unverified.example/";
/// Long enough for any sync here on a busy machine.
pub const SYNC_LIMIT: Duration = Duration::from_mins(3);

/// The dimension sets that Tidegate syncs when nobody says otherwise.
const DIMENSIONS: [&str; 6] = [
    "date",
    "page",
    "query",
    "page,query,country,device",
    "country",
    "device",
];

/// Every kind of fault that passes, in 2 % of the answers, and tokens that live for a minute.
pub const MIXED_FAULTS: &str = r#"
token_life_s = 60
[[faults]]
kinds = ["500", "500null", "503", "429", "403rate", "html_502", "conn_reset_before", "conn_reset_mid_body",
         "truncated_gzip", "truncated_json_with_200", "wrong_content_length", "401once"]
p = 0.02
[[faults]]
endpoint = "token"
kinds = ["500", "503", "conn_reset_before"]
p = 0.02
"#;

/// Where the rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// A file in the installation's folder.
    Sqlite,
    /// A database of its own on the shared server.
    Postgres,
}

/// An installation that syncs from an emulator.
#[derive(Debug)]
pub struct Sync<'a> {
    /// Its processes.
    pub stack: Stack<'a>,
    /// What it syncs from.
    pub emulator: Emulator,
    /// How many days it syncs.
    pub days: u32,
}

impl<'a> Sync<'a> {
    /// A coordinator and workers of these names, which sync so many days. `settings` are added to the
    /// emulator's configuration; there are no quotas.
    pub async fn start(
        broker: &'a RabbitMq,
        database: Database,
        settings: &str,
        days: u32,
        workers: &[&str],
    ) -> Result<Self> {
        let mut stack = Stack::new(broker, NO_LIMITS)?;
        if database == Database::Postgres {
            stack.set("TIDEGATE_SINK__URL", postgres::shared().new_database()?);
        }
        let emulator = stack
            .start_emulator(&format!("{NO_QUOTAS}{settings}"))
            .await?;
        stack.start_coordinator().await?;
        for worker in workers {
            stack.start_worker(worker).await?;
        }
        Ok(Self {
            stack,
            emulator,
            days,
        })
    }

    /// `tidegate sync search-console … --watch --json` for these properties, in the background.
    pub fn begin(&self, properties: &[&str]) -> Result<JoinHandle<Result<Answer>>> {
        let days = self.days.to_string();
        let mut arguments = vec![
            "sync",
            "search-console",
            "--watch",
            "--json",
            "--days",
            &days,
        ];
        for property in properties {
            arguments.extend(["--property", property]);
        }
        self.stack.start_tidegate(&arguments)
    }

    /// Syncs the readable properties, and insists that all went well.
    pub async fn run(&self) -> Result<Run> {
        finished(&self.begin(&READABLE)?.await??)
    }

    /// Lets the emulator's days pass and restarts the workers, so that they see it too.
    pub async fn advance(&mut self, days: u32, workers: &[&str]) -> Result<()> {
        self.emulator.admin.advance(days).await?;
        self.stack.set(
            "TIDEGATE_SEARCH_CONSOLE__NOW",
            self.emulator.admin.now().await?,
        );
        for worker in workers {
            self.stack.worker(worker).terminate(SYNC_LIMIT)?;
            self.stack.start_worker(worker).await?;
        }
        Ok(())
    }

    /// Waits until the newest run has completed this many batches, and some are left.
    pub async fn wait_until_midway(&self, completed: u64) -> Result<Run> {
        wait::until("the run to be midway", SYNC_LIMIT, async || {
            let Some(run) = self.stack.api.runs().await?.into_iter().next() else {
                return Ok(None);
            };
            if run.batches.completed < completed {
                return Ok(None);
            }
            let left = run.batches.accepted - run.batches.finished();
            ensure!(
                left > 0,
                "the run was over before anything could happen to it: {run:?}"
            );
            Ok(Some(run))
        })
        .await
    }

    /// Insists that every slice of these properties is as the emulator has it now.
    pub async fn assert_truth(&self, properties: &[&str]) -> Result<()> {
        let report = self.compare(properties, 0).await?;
        ensure!(report.is_good(), "{report}");
        Ok(())
    }

    /// Syncs everything that can be read, and kills this worker once so many batches are done: the others make the
    /// truth of it.
    pub async fn complete_without(&mut self, worker: &str, completed: u64) -> Result<Run> {
        let command = self.begin(&READABLE)?;
        self.wait_until_midway(completed).await?;
        self.stack.worker(worker).kill()?;
        let run = finished(&command.await??)?;
        self.assert_truth(&READABLE).await?;
        Ok(run)
    }

    /// Compares with what the emulator has now: the days that were its last ones so many days ago.
    pub async fn compare(&self, properties: &[&str], days_ago: u32) -> Result<truth::Report> {
        let sink = self.stack.sink().await?;
        compare(&sink, &self.emulator.admin, properties, self.days, days_ago).await
    }

    /// Insists that no batch was written more than once, and none by a second attempt.
    pub async fn assert_first_attempts(&self, run: &Run) -> Result<()> {
        let sink = self.stack.sink().await?;
        let others = sink
            .number("select count(*) from batch_commits where attempt <> 1")
            .await?;
        ensure!(
            others == 0,
            "{others} batches were completed by another attempt than the first"
        );
        ensure!(
            run.retries == 0,
            "attempts were counted that nobody made: {run:?}"
        );
        let rewritten = sink.number(REWRITTEN).await?;
        ensure!(
            rewritten == 0,
            "{rewritten} slices were written more than once"
        );
        Ok(())
    }
}

/// Compares so many days of these properties, the last of which was final so many days ago, with what the emulator
/// has now.
pub async fn compare(
    sink: &Sink,
    emulator: &Admin,
    properties: &[&str],
    days: u32,
    days_ago: u32,
) -> Result<truth::Report> {
    let today = emulator.advance(0).await?;
    let wish = Wish {
        properties: properties.iter().map(ToString::to_string).collect(),
        types: SearchType::ALL.to_vec(),
        dimensions: DIMENSIONS
            .iter()
            .map(|set| set.parse())
            .collect::<Result<_, _>>()?,
        last: last_final_day(today).checked_sub(i64::from(days_ago).days())?,
        days,
    };
    truth::compare(sink, emulator, &wish).await
}

/// Slices whose rows were written more than once.
pub const REWRITTEN: &str = "select count(*) from search_analytics_slices where version > 1";

/// The run that `--watch --json` printed, if it completed and nothing of it is dead.
pub fn finished(answer: &Answer) -> Result<Run> {
    ensure!(answer.code == 0, "{answer:?}");
    let run: Run = serde_json::from_value(answer.json()?)?;
    ensure!(run.batches.completed == run.batches.accepted, "{run:?}");
    Ok(run)
}
