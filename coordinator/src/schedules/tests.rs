//! Schedules against a real SQLite ledger, looked at when the tests say so.

use jiff::SignedDuration;
use shared::config::{Missed, PipelineConfig, SchedulePriority, Span};
use shared::name::PipelineName;
use shared::timetable::Timetable;
use tokio::sync::mpsc;

use super::*;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{LedgerViews, OperationsLedger};
use crate::notice::Notice;
use crate::run::{Priority, Run};
use crate::submission::{NoPressure, NoWebhooks, Room};

/// Midnight in UTC, long ago.
const START: Timestamp = Timestamp::constant(1_767_225_600, 0);

fn name() -> ScheduleName {
    ScheduleName::try_from("hourly".to_owned()).unwrap()
}

fn hourly(missed: Missed) -> ScheduleConfig {
    ScheduleConfig {
        timetable: Timetable::new("@hourly", "UTC").unwrap(),
        pipeline: PipelineName::new("hashes").unwrap(),
        lines: "{\"key\":\"a\",\"payload\":1}\n{\"payload\":2}\n".into(),
        priority: SchedulePriority::Low,
        missed,
        grace: Span::seconds(60),
        webhook: None,
        enabled: true,
    }
}

fn at(minutes: i64) -> Timestamp {
    START + SignedDuration::from_mins(minutes)
}

struct Fixture {
    ledger: Arc<SqliteLedger>,
    submission: Arc<SubmissionStage>,
    _notices: mpsc::Receiver<Notice>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new(backlog_limit: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger.db");
        let ledger = Arc::new(SqliteLedger::open(&file).await.unwrap());
        let (tell, notices) = mpsc::channel(64);
        let hashes = PipelineName::new("hashes").unwrap();
        let submission = SubmissionStage {
            ledger: ledger.clone(),
            pipelines: BTreeMap::from([(hashes, PipelineConfig::default())]),
            room: Room::new(backlog_limit),
            pressure: Arc::new(NoPressure),
            webhooks: Arc::new(NoWebhooks),
            notices: tell,
        };
        Self {
            ledger,
            submission: Arc::new(submission),
            _notices: notices,
            _folder: folder,
        }
    }

    /// A coordinator that starts with this schedule.
    fn stage(&self, configured: &Configured) -> ScheduleStage {
        ScheduleStage {
            shown: Schedules::new(configured),
            submission: self.submission.clone(),
            ledger: self.ledger.clone(),
            draining: CancellationToken::new(),
        }
    }

    /// The same, and what it goes on from when it starts at a time.
    async fn keeper(&self, config: &ScheduleConfig, now: Timestamp) -> (Keeper, Schedules) {
        let configured = BTreeMap::from([(name(), config.clone())]);
        let stage = self.stage(&configured);
        let mut memories = stage.recall(&configured, now).await.unwrap();
        let memory = memories.remove(&name()).unwrap();
        (
            Keeper::new(&stage, name(), config.clone(), memory),
            stage.shown.clone(),
        )
    }

    async fn runs(&self) -> Vec<Run> {
        let mut runs = self.ledger.runs(None, None, 100).await.unwrap();
        runs.reverse();
        runs
    }
}

/// Looks at it until there is nothing to do at this time.
async fn look(keeper: &mut Keeper, now: Timestamp) {
    while keeper.step(now).await.is_zero() {}
}

#[tokio::test]
async fn a_firing_is_a_run_like_any_other() {
    let fixture = Fixture::new(100).await;
    let (mut keeper, shown) = fixture.keeper(&hourly(Missed::Skip), at(30)).await;
    look(&mut keeper, at(59)).await;
    assert_eq!(fixture.runs().await, []);
    look(&mut keeper, at(60)).await;
    look(&mut keeper, at(61)).await;
    let runs = fixture.runs().await;
    assert_eq!(runs.len(), 1);
    assert_eq!(
        (runs[0].batches.pending, runs[0].priority),
        (2, Priority::Low)
    );
    let view = shown.views(at(61)).remove(0);
    assert_eq!(
        (view.last, view.last_run),
        (Some(at(60)), Some(runs[0].run))
    );
    assert_eq!((view.next, view.problem), (Some(at(120)), None));
}

#[tokio::test]
async fn a_crash_before_it_is_remembered_gives_the_same_run() {
    let fixture = Fixture::new(100).await;
    let config = hourly(Missed::Skip);
    let stored = fixture.keeper(&config, at(30)).await;
    let before = fixture.ledger.remembered(Memory::Schedule).await.unwrap();
    let mut keeper = stored.0;
    look(&mut keeper, at(60)).await;
    // What the crash took along is the memory of it alone.
    fixture
        .ledger
        .remember(Memory::Schedule, &before)
        .await
        .unwrap();
    let (mut restarted, shown) = fixture.keeper(&config, at(60)).await;
    look(&mut restarted, at(60)).await;
    let runs = fixture.runs().await;
    assert_eq!(runs.len(), 1);
    assert_eq!(shown.views(at(60))[0].last_run, Some(runs[0].run));

    // Not even other batches make a second one.
    fixture
        .ledger
        .remember(Memory::Schedule, &before)
        .await
        .unwrap();
    let other = ScheduleConfig {
        lines: "{\"payload\":3}\n".into(),
        ..config
    };
    let (mut restarted, _) = fixture.keeper(&other, at(60)).await;
    look(&mut restarted, at(60)).await;
    assert_eq!(fixture.runs().await.len(), 1);
}

#[tokio::test]
async fn what_was_missed_is_caught_up_once_or_skipped() {
    for (missed, expected) in [(Missed::Skip, 1), (Missed::CatchUp, 2)] {
        let fixture = Fixture::new(100).await;
        let config = hourly(missed);
        let (mut keeper, _) = fixture.keeper(&config, at(30)).await;
        look(&mut keeper, at(60)).await;
        let (mut restarted, _) = fixture.keeper(&config, at(60 * 24 * 365 + 30)).await;
        look(&mut restarted, at(60 * 24 * 365 + 30)).await;
        assert_eq!(fixture.runs().await.len(), expected, "{missed:?}");
    }
}

#[tokio::test]
async fn a_new_timetable_and_a_pause_miss_nothing() {
    let fixture = Fixture::new(100).await;
    let config = hourly(Missed::CatchUp);
    let (mut keeper, _) = fixture.keeper(&config, at(30)).await;
    look(&mut keeper, at(60)).await;
    let run = fixture.runs().await[0].run;
    let off = ScheduleConfig {
        enabled: false,
        ..config.clone()
    };
    let (_, shown) = fixture.keeper(&off, at(90)).await;
    assert_eq!(shown.views(at(90))[0].next, None);
    let (mut keeper, _) = fixture.keeper(&config, at(1_000)).await;
    look(&mut keeper, at(1_000)).await;
    let other = ScheduleConfig {
        timetable: Timetable::new("30 * * * *", "UTC").unwrap(),
        ..config
    };
    let (mut keeper, _) = fixture.keeper(&other, at(2_000)).await;
    look(&mut keeper, at(2_000)).await;
    assert_eq!(fixture.runs().await.len(), 1);
    assert_eq!(keeper.memory.last, Some(memory::Fired { at: at(60), run }));
}

#[tokio::test]
async fn a_refused_firing_is_tried_until_the_next_one() {
    let fixture = Fixture::new(3).await;
    let (mut keeper, shown) = fixture.keeper(&hourly(Missed::Skip), at(30)).await;
    look(&mut keeper, at(60)).await;
    let full = fixture.runs().await[0].run;
    // The second one finds no room, for longer than its grace.
    for minute in [120, 121, 150, 179] {
        keeper.step(at(minute)).await;
        let problem = shown.views(at(minute))[0].problem.clone().unwrap();
        assert!(problem.contains("pending"), "{problem}");
    }
    // The third gives it up, and finds no room either.
    keeper.step(at(180)).await;
    assert_eq!(fixture.runs().await.len(), 1);
    fixture.ledger.cancel(full, START).await.unwrap();
    fixture
        .ledger
        .cancel_pending(full, 10, START)
        .await
        .unwrap();
    look(&mut keeper, at(181)).await;
    assert_eq!(fixture.runs().await.len(), 2);
    let view = shown.views(at(181)).remove(0);
    assert_eq!((view.last, view.problem), (Some(at(180)), None));
}

#[tokio::test]
async fn what_can_never_be_submitted_is_said_and_left() {
    let fixture = Fixture::new(100).await;
    let config = ScheduleConfig {
        pipeline: PipelineName::new("gone").unwrap(),
        ..hourly(Missed::Skip)
    };
    let (mut keeper, shown) = fixture.keeper(&config, at(30)).await;
    look(&mut keeper, at(60)).await;
    let view = shown.views(at(60)).remove(0);
    assert!(view.problem.unwrap().contains("no pipeline"));
    assert_eq!(keeper.memory.looked_after, at(60));
}

/// The whole stage, by the real clock.
#[tokio::test]
async fn the_stage_fires_by_itself_and_ends_when_asked() {
    let fixture = Fixture::new(100).await;
    let config = ScheduleConfig {
        timetable: Timetable::new("* * * * * *", "UTC").unwrap(),
        ..hourly(Missed::Skip)
    };
    let configured = BTreeMap::from([(name(), config)]);
    let stage = fixture.stage(&configured);
    let (shown, draining) = (stage.shown.clone(), stage.draining.clone());
    let running = tokio::spawn(stage.run(configured));
    while fixture.runs().await.len() < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    draining.cancel();
    running.await.unwrap().unwrap();
    let view = shown.views(Timestamp::now()).remove(0);
    assert_eq!(
        view.last_run,
        fixture.runs().await.last().map(|run| run.run)
    );
}
