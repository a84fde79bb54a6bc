//! A sync that runs into the emulator's quotas: how much of the allowed rate is used, and how much is refused.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::emulator::Emulator;
use crate::postgres;
use crate::rabbitmq::RabbitMq;
use crate::stack::Stack;
use crate::wait;

/// Properties that the emulator's account may read.
const PROPERTIES: [&str; 3] = [
    "sc-domain:alpha.example",
    "https://beta.example/",
    "https://gamma.example/shop/",
];
/// Enough slices of a property under way that none of its places in line stays empty, however busy the machine.
const PIPELINES: &str = "[pipelines.\"gsc.slice\"]\nmax_in_flight_per_key = 16\n";
/// No load quota, which is about what calls cost, not about how many there are.
const EMULATOR: &str = "load_short = 0\nload_long = 0\n";
/// A machine that starts many processes at once takes its time.
const START_LIMIT: Duration = Duration::from_mins(2);

/// Which quota is the narrowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// The user's 1,200 calls a minute, over three properties.
    User,
    /// The property's 1,200 calls a minute.
    Site,
    /// The 60 calls a minute of a new project, over three properties.
    NewProject,
}

impl Quota {
    /// Calls that are allowed in a minute.
    #[must_use]
    pub fn per_minute(self) -> u32 {
        match self {
            Self::User | Self::Site => 1_200,
            Self::NewProject => 60,
        }
    }

    fn emulator(self) -> String {
        let quota = match self {
            Self::User => "",
            // The burst cap counts the calls of a second, which no 1.5 % of anything can keep apart.
            Self::Site => "qps_burst = 0\n",
            Self::NewProject => "new_project = true\n",
        };
        format!("{EMULATOR}{quota}")
    }

    /// What Tidegate is told: nothing about limits, where its defaults are Google's.
    fn config(self) -> String {
        let limits = match self {
            Self::User => "",
            // It would climb to that within half a minute.
            Self::Site => "[limits.\"gsc.site\"]\nstart = \"1200/min\"\n",
            Self::NewProject => "[limits.\"gsc.project\"]\nrate = \"60/min\"\n",
        };
        format!("{PIPELINES}{limits}")
    }

    fn properties(self) -> &'static [&'static str] {
        match self {
            Self::Site => &PROPERTIES[..1],
            Self::User | Self::NewProject => &PROPERTIES,
        }
    }
}

/// An installation that calls as fast as it may.
#[derive(Debug)]
pub struct LimitUse<'a> {
    /// Its processes.
    pub stack: Stack<'a>,
    quota: Quota,
    emulator: Emulator,
}

/// Calls so far.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    at: Instant,
    /// Within all quotas.
    pub accepted: u64,
    /// Over one.
    pub rejected: u64,
}

/// What happened between two looks.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Accepted calls, as a part of those allowed.
    pub share: f64,
    /// Rejected calls, as a part of all.
    pub rejected: f64,
    /// All calls.
    pub calls: u64,
    /// How long it was.
    pub seconds: f64,
}

impl Calls {
    /// How long ago that was.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.at.elapsed()
    }
}

impl<'a> LimitUse<'a> {
    /// Starts everything and waits until calls are made at full speed.
    pub async fn start(broker: &'a RabbitMq, quota: Quota, workers: usize) -> Result<Self> {
        let mut stack = Stack::new(broker, &quota.config())?;
        stack.set("TIDEGATE_SINK__URL", postgres::shared().new_database()?);
        stack.set("TIDEGATE_LOG", "warn");
        let emulator = stack.start_emulator(&quota.emulator()).await?;
        stack.start_coordinator().await?;
        for worker in 0..workers {
            stack.spawn_worker(&format!("worker-{worker}"))?;
        }
        let api = &stack.api;
        wait::until("the workers to be known", START_LIMIT, async || {
            Ok((api.workers().await?.len() == workers).then_some(()))
        })
        .await?;
        let mut command = vec!["sync", "search-console", "--days", "480"];
        // Answers of a few rows: this is about calls.
        command.extend(["--dimensions", "country", "--dimensions", "device"]);
        for property in quota.properties() {
            command.extend(["--property", property]);
        }
        let answer = stack.tidegate(&command).await?;
        anyhow::ensure!(answer.code == 0, "{answer:?}");
        let limit_use = Self {
            stack,
            quota,
            emulator,
        };
        // The plans are done when there is more to do than they ask for.
        wait::until("slices", START_LIMIT, async || {
            let run = limit_use.stack.api.runs().await?.into_iter().next();
            let run = run.context("no run")?;
            Ok((run.batches.completed > 2 * PROPERTIES.len() as u64).then_some(()))
        })
        .await?;
        Ok(limit_use)
    }

    /// Calls so far.
    pub async fn calls(&self) -> Result<Calls> {
        let stats = self.emulator.admin.stats().await?;
        let at = Instant::now();
        let all = stats["by_endpoint"]["searchanalytics.query"]
            .as_u64()
            .unwrap_or_default();
        let over = stats["over_quota"].as_object().context("no over_quota")?;
        let rejected = over.values().filter_map(Value::as_u64).sum();
        Ok(Calls {
            at,
            accepted: all.saturating_sub(rejected),
            rejected,
        })
    }

    /// What happens from now on, for so long.
    pub async fn measure(&self, span: Duration) -> Result<Usage> {
        let before = self.calls().await?;
        tokio::time::sleep(span).await;
        self.since(&before).await
    }

    /// What has happened since an earlier look.
    pub async fn since(&self, before: &Calls) -> Result<Usage> {
        let after = self.calls().await?;
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let allowed = f64::from(self.quota.per_minute()) / 60.0 * seconds;
        let accepted = count(after.accepted - before.accepted);
        let rejected = count(after.rejected - before.rejected);
        let all = accepted + rejected;
        Ok(Usage {
            share: accepted / allowed,
            rejected: if all > 0.0 { rejected / all } else { 0.0 },
            calls: after.accepted + after.rejected - before.accepted - before.rejected,
            seconds,
        })
    }

    /// Ends it; the processes are killed.
    pub fn stop(self) {}
}

#[expect(clippy::cast_precision_loss, reason = "calls stay far below 2^52")]
fn count(calls: u64) -> f64 {
    calls as f64
}
