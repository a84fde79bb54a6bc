//! Stays with a run until it has ended, also when the coordinator is restarted meanwhile.

use std::time::Duration;

use coordinator::run::{Run, RunState};
use indicatif::HumanDuration;
use shared::exit;
use tokio::time::{Instant, sleep};

use crate::client::{ApiError, Client};
use crate::failure::{Failure, INTERRUPTED};
use crate::progress::Progress;

/// How often the coordinator is asked.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How often at most, once it does not answer.
const ASK_AGAIN_EVERY: Duration = Duration::from_secs(5);
/// How long an absent coordinator is waited for: a restart takes seconds, a moved pod a minute or two.
const PATIENCE: Duration = Duration::from_mins(5);
/// A run that stands still for so long makes one wonder whether there is a worker at all.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Watches until the run has ended, tells its progress on stderr, and returns it as it ended.
/// Ctrl-C ends the watching, never the run.
pub(crate) async fn watch(client: &Client, run: Run) -> Result<Run, Failure> {
    let id = run.run;
    let mut progress = Progress::new();
    let ended = tokio::select! {
        ended = follow(run, &mut progress, async || client.run(id).await, async || no_worker(client).await) => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure {
            exit: INTERRUPTED,
            message: format!("no longer watching; the run goes on. Watch it again: tidegate run watch {id}"),
        }),
    };
    match &ended {
        Ok(run) => progress.end(run),
        Err(_) => progress.leave(),
    }
    ended
}

/// Asks until the run has ended.
async fn follow(
    mut run: Run,
    progress: &mut Progress,
    ask: impl AsyncFn() -> Result<Run, ApiError>,
    no_worker: impl AsyncFn() -> bool,
) -> Result<Run, Failure> {
    let mut absence = Absence::default();
    let mut moved = Instant::now();
    let mut wondered = false;
    progress.show(std::time::Instant::now(), &run);
    while !run.has_ended() {
        sleep(absence.pause()).await;
        match ask().await {
            Ok(now) => {
                if absence.end() {
                    progress.say("the coordinator is back");
                }
                if now.batches != run.batches {
                    moved = Instant::now();
                }
                run = now;
                progress.show(std::time::Instant::now(), &run);
            }
            Err(error) if error.may_pass() => {
                if absence.begin() {
                    let patience = HumanDuration(PATIENCE);
                    progress.say(&format!(
                        "lost the coordinator, trying again for {patience}: {error}"
                    ));
                }
                if absence.lasts_too_long() {
                    let message = format!(
                        "{error}; gave up, the run goes on. Watch it again: tidegate run watch {}",
                        run.run
                    );
                    return Err(Failure {
                        exit: exit::UNAVAILABLE,
                        message,
                    });
                }
            }
            Err(error) => return Err(error.into()),
        }
        if !wondered && moved.elapsed() > STANDSTILL && no_worker().await {
            wondered = true;
            progress.say("no worker is running: the run waits until one is started");
        }
    }
    Ok(run)
}

async fn no_worker(client: &Client) -> bool {
    client
        .workers()
        .await
        .is_ok_and(|workers| workers.is_empty())
}

/// The exit code that a watched run deserves.
pub(crate) fn exit_code(run: &Run) -> u8 {
    let clean =
        run.state == RunState::Completed && run.batches.dead == 0 && run.batches.cancelled == 0;
    if clean { exit::OK } else { exit::FAILED }
}

/// How long the coordinator has not answered.
#[derive(Debug, Default)]
struct Absence {
    since: Option<Instant>,
    questions: u32,
}

impl Absence {
    /// Another question was not answered. `true` for the first.
    fn begin(&mut self) -> bool {
        self.questions += 1;
        let first = self.since.is_none();
        self.since.get_or_insert_with(Instant::now);
        first
    }

    /// A question was answered. `true` if those before were not.
    fn end(&mut self) -> bool {
        self.questions = 0;
        self.since.take().is_some()
    }

    fn lasts_too_long(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    /// How long to wait before the next question.
    fn pause(&self) -> Duration {
        (ASK_EVERY * 2_u32.pow(self.questions.min(10))).min(ASK_AGAIN_EVERY)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use coordinator::run::{BatchCounts, Priority};
    use shared::id::RunId;
    use shared::name::PipelineName;

    use super::*;

    pub(crate) fn run() -> Run {
        Run {
            run: RunId::generate(),
            pipeline: PipelineName::new("hashes").unwrap(),
            state: RunState::Running,
            priority: Priority::Normal,
            batches: BatchCounts::default(),
            retries: 0,
            rows: 0,
            statistics: std::collections::BTreeMap::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            finished_at: None,
        }
    }

    fn away() -> ApiError {
        ApiError::Unreachable {
            url: "http://127.0.0.1:1".parse().unwrap(),
            problem: "refused".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_of_the_coordinator_is_outlasted() {
        let ended = Run {
            state: RunState::Completed,
            ..run()
        };
        let answers = RefCell::new(VecDeque::from([
            Ok(run()),
            Err(away()),
            Err(away()),
            Ok(ended.clone()),
        ]));
        let ask = async || answers.borrow_mut().pop_front().unwrap();
        let watched = follow(run(), &mut Progress::new(), ask, async || false)
            .await
            .unwrap();
        assert_eq!(watched, ended);
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_stays_away_is_given_up() {
        let start = Instant::now();
        let failure = follow(
            run(),
            &mut Progress::new(),
            async || Err(away()),
            async || false,
        )
        .await
        .unwrap_err();
        assert_eq!(failure.exit, exit::UNAVAILABLE);
        assert!(failure.message.contains("tidegate run watch"), "{failure}");
        assert!(start.elapsed() >= PATIENCE && start.elapsed() < PATIENCE + 2 * ASK_AGAIN_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_stands_still_makes_one_ask_for_workers_once() {
        let left = Cell::new(1_000_u32);
        let ask = async || {
            left.set(left.get() - 1);
            let state = if left.get() == 0 {
                RunState::Completed
            } else {
                RunState::Running
            };
            Ok(Run { state, ..run() })
        };
        let asked = Cell::new(0);
        let no_worker = async || {
            asked.set(asked.get() + 1);
            true
        };
        follow(run(), &mut Progress::new(), ask, no_worker)
            .await
            .unwrap();
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn only_a_clean_run_is_a_success() {
        let completed = Run {
            state: RunState::Completed,
            ..run()
        };
        assert_eq!(exit_code(&completed), exit::OK);
        let dead = BatchCounts {
            dead: 1,
            ..BatchCounts::default()
        };
        assert_eq!(
            exit_code(&Run {
                batches: dead,
                ..completed.clone()
            }),
            exit::FAILED
        );
        let cancelled = BatchCounts {
            cancelled: 1,
            ..BatchCounts::default()
        };
        assert_eq!(
            exit_code(&Run {
                batches: cancelled,
                ..completed
            }),
            exit::FAILED
        );
        assert_eq!(
            exit_code(&Run {
                state: RunState::Cancelled,
                ..run()
            }),
            exit::FAILED
        );
    }
}
