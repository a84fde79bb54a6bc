//! A sink that is in trouble while a run is going on: away, full, or slow. Nothing is lost, nobody spins, no attempt is
//! burnt, and work goes on soon after the trouble is over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coordinator::run::Run;
use harness::api::line;
use harness::postgres::Postgres;
use harness::rabbitmq::RabbitMq;
use harness::scratch::Scratch;
use harness::stack::Stack;
use harness::wait;
use serde_json::{Value, json};

/// The pipeline's name.
pub const PIPELINE: &str = "echo";
/// A batch's one row is its payload; a while after that has come, so that there is always something to do.
const ECHO: &str =
    "[pipelines.echo]\nhandler = \"exec\"\ncommand = [\"sh\", \"-c\", \"cat; sleep 0.05\"]\n";
const WORKER: &str = "a";
const LIMIT: Duration = Duration::from_mins(3);
/// What a worker says each time when it tries a sink again.
const RETRY: &str = "the sink does not answer, trying again";

/// A run whose sink gets into trouble.
#[derive(Debug)]
pub struct Outage<'a> {
    /// Coordinator and worker.
    pub stack: Stack<'a>,
    run: Run,
    batches: usize,
    /// Bytes of text in each row.
    text: usize,
    /// Since when the sink is in trouble.
    since: Instant,
}

/// What a worker did about it.
#[derive(Debug)]
pub struct Behaviour {
    /// How often it tried the sink again while that was in trouble.
    pub tries: usize,
    /// For how long that was.
    pub lasted: Duration,
    /// Until something was completed again.
    pub recovery: Duration,
}

impl<'a> Outage<'a> {
    /// A worker in the middle of a run of so many batches. `settings` are added to the config, in the pipeline's section;
    /// `sink` is the URL of the default sink.
    pub async fn begin(
        broker: &'a RabbitMq,
        settings: &str,
        sink: Option<String>,
        batches: usize,
        text: usize,
    ) -> Result<Self> {
        let mut stack = Stack::new(broker, &format!("{ECHO}{settings}"))?;
        stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
        stack.set("TIDEGATE_WORKER__SLOTS", "4");
        if let Some(sink) = sink {
            stack.set("TIDEGATE_SINK__URL", sink);
        }
        stack.start_coordinator().await?;
        stack.start_worker(WORKER).await?;
        let lines = (0..batches).map(|n| line(&format!("key-{}", n % 7), &payload(n, text)));
        let run = stack.api.submit(PIPELINE, lines.collect()).await?;
        let begun = |run: &Run| run.batches.completed >= 20;
        let run = stack
            .api
            .wait_for_run(run.run, "the run to be under way", LIMIT, begun)
            .await?;
        Ok(Self {
            stack,
            run,
            batches,
            text,
            since: Instant::now(),
        })
    }

    /// How often the worker has tried a sink again so far.
    pub fn tries(&mut self) -> Result<usize> {
        let output = self.stack.worker(WORKER).output()?;
        Ok(output.matches(RETRY).count())
    }

    /// The sink is in trouble from now on, after `begin`; waits until the worker has noticed.
    pub fn trouble(&mut self, begin: impl FnOnce() -> Result<()>) -> Result<()> {
        begin()?;
        self.since = Instant::now();
        let worker = self.stack.worker(WORKER);
        worker.wait_for_line(RETRY, LIMIT).map(drop)
    }

    /// How many batches are completed.
    pub async fn completed(&self) -> Result<u64> {
        Ok(self.stack.api.run(self.run.run).await?.batches.completed)
    }

    /// The trouble, which goes on for `lasting`, is over after `end`: waits until something is completed again.
    pub async fn endure(
        &mut self,
        lasting: Duration,
        end: impl FnOnce() -> Result<()>,
    ) -> Result<Behaviour> {
        tokio::time::sleep(lasting).await;
        let (tries, lasted) = (self.tries()?, self.since.elapsed());
        let completed = self.completed().await?;
        ensure!(completed < self.batches as u64, "the run was over too soon");
        end()?;
        let start = Instant::now();
        wait::until("something to be completed again", LIMIT, async || {
            Ok((self.completed().await? > completed).then_some(()))
        })
        .await?;
        let recovery = start.elapsed();
        Ok(Behaviour {
            tries,
            lasted,
            recovery,
        })
    }

    /// Waits for the run's end: everything is completed, at the first attempt.
    pub async fn finish(&mut self) -> Result<()> {
        let ended = self.stack.api.wait_until_ended(self.run.run, LIMIT).await?;
        let all = self.batches as u64;
        ensure!(
            (ended.batches.completed, ended.retries) == (all, 0),
            "not all was completed at the first attempt: {ended:?}"
        );
        self.stack.worker(WORKER).ensure_running()
    }

    /// Whether these rows are those of all batches, each once.
    pub fn check(&self, rows: Vec<String>) -> Result<()> {
        let mut stored: BTreeMap<String, usize> = BTreeMap::new();
        for row in rows {
            *stored.entry(row).or_default() += 1;
        }
        let row = |n| (payload(n, self.text).to_string(), 1);
        let expected: BTreeMap<String, usize> = (0..self.batches).map(row).collect();
        let missing = expected.keys().filter(|row| !stored.contains_key(*row));
        let (missing, twice) = (missing.count(), stored.values().filter(|n| **n > 1).count());
        ensure!(
            stored == expected,
            "{missing} results are missing, {twice} are there more than once"
        );
        Ok(())
    }
}

fn payload(number: usize, text: usize) -> Value {
    json!({ "number": number, "text": "x".repeat(text) })
}

impl Behaviour {
    /// Under one try a second, and something done within five seconds after the end of it.
    pub fn check(&self) -> Result<()> {
        const RECOVERY: Duration = Duration::from_secs(5);
        let seconds = usize::try_from(self.lasted.as_secs())?;
        ensure!(self.tries > 0, "the sink was never in trouble: {self:?}");
        ensure!(self.tries <= seconds, "it spins: {self:?}");
        ensure!(self.recovery < RECOVERY, "it comes back late: {self:?}");
        Ok(())
    }
}

/// PostgreSQL is stopped and started again.
pub async fn away(broker: &RabbitMq, lasting: Duration) -> Result<Behaviour> {
    let postgres = Postgres::start()?;
    let url = postgres.new_database()?;
    let mut outage = Outage::begin(broker, "", Some(url), 400, 10).await?;
    outage.trouble(|| postgres.stop())?;
    let behaviour = outage.endure(lasting, || postgres.start_again()).await?;
    outage.finish().await?;
    let sink = outage.stack.sink().await?;
    outage.check(sink.texts("select cast(json as text) from results").await?)?;
    Ok(behaviour)
}

/// A small disk. Only root can make one.
#[derive(Debug)]
pub struct SmallDisk {
    scratch: Scratch,
}

impl SmallDisk {
    /// One of so many MiB; `None` where this is not allowed.
    pub fn new(mebibytes: u32) -> Result<Option<Self>> {
        let disk = Self {
            scratch: Scratch::new("disk")?,
        };
        std::fs::create_dir(disk.path())?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(disk.path())
            .output();
        Ok(mounted
            .is_ok_and(|mounted| mounted.status.success())
            .then_some(disk))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("disk")
    }

    /// Fills it, but for so many KiB.
    pub fn fill(&self, but_kib: usize) -> Result<()> {
        let (room, ballast) = (self.path().join("room"), self.path().join("ballast"));
        std::fs::write(&room, vec![0; but_kib * 1024]).context("keeping some room")?;
        let mut ballast = std::fs::File::create(ballast)?;
        // Until there is no more.
        while std::io::Write::write(&mut ballast, &[0; 4096]).is_ok_and(|written| written > 0) {}
        Ok(std::fs::remove_file(room)?)
    }

    /// Makes room again.
    pub fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.path().join("ballast"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("could not unmount {}", self.path().display());
        }
    }
}

/// The rows in the NDJSON files of a folder.
pub fn lines_below(folder: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "ndjson")
        {
            lines.extend(std::fs::read_to_string(path)?.lines().map(str::to_owned));
        }
    }
    Ok(lines)
}

/// What is on the small disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisk {
    /// The default sink's SQLite file.
    Database,
    /// NDJSON files, whose markers are elsewhere.
    Files,
}

/// The disk is full. `None` where no small disk can be made.
pub async fn full(broker: &RabbitMq, what: OnDisk, lasting: Duration) -> Result<Option<Behaviour>> {
    const TEXT: usize = 8 * 1024;
    let Some(disk) = SmallDisk::new(24)? else {
        return Ok(None);
    };
    let (settings, url) = match what {
        OnDisk::Database => {
            let url = format!("sqlite://{}/results.db", disk.path().display());
            (String::new(), Some(url))
        }
        OnDisk::Files => {
            let folder = disk.path().display().to_string();
            let sink = format!("[sinks.files]\nkind = \"ndjson\"\nfolder = \"{folder}\"\n");
            (format!("sink = \"files\"\n{sink}"), None)
        }
    };
    let mut outage = Outage::begin(broker, &settings, url, 300, TEXT).await?;
    outage.trouble(|| disk.fill(256))?;
    let behaviour = outage.endure(lasting, || disk.empty()).await?;
    outage.finish().await?;
    let rows = match what {
        OnDisk::Database => {
            let sink = outage.stack.sink().await?;
            sink.texts("select cast(json as text) from results").await?
        }
        OnDisk::Files => lines_below(&disk.path())?,
    };
    outage.check(rows)?;
    // The processes let go of the disk before it goes.
    drop(outage);
    Ok(Some(behaviour))
}

/// Somebody keeps everybody from writing for a while: `Behaviour::tries` are those of a sink that is only slow.
pub async fn slow(broker: &RabbitMq, lasting: Duration) -> Result<Behaviour> {
    let postgres = Postgres::start()?;
    let url = postgres.new_database()?;
    let database = url
        .rsplit('/')
        .next()
        .context("a URL with a database")?
        .to_owned();
    let mut outage = Outage::begin(broker, "", Some(url), 400, 10).await?;
    let seconds = lasting.as_secs() + 2;
    let lock = format!(
        "begin; lock table batch_commits in exclusive mode; select pg_sleep({seconds}); commit"
    );
    let locking = tokio::task::spawn_blocking(move || {
        let locked = postgres.psql(&database, &lock);
        locked.map(|_| postgres)
    });
    // Until nothing comes through any more.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = outage.completed().await?;
    tokio::time::sleep(lasting / 2).await;
    ensure!(outage.completed().await? <= before + 64, "nothing was slow");
    let postgres = locking.await??;
    let behaviour = outage.endure(Duration::ZERO, || Ok(())).await?;
    let behaviour = Behaviour {
        tries: outage.tries()?,
        ..behaviour
    };
    outage.finish().await?;
    let sink = outage.stack.sink().await?;
    outage.check(sink.texts("select cast(json as text) from results").await?)?;
    drop(outage);
    drop(postgres);
    Ok(behaviour)
}
