//! Everything at once, at random: a million batches of ten thousand keys, and thousands of things that happen
//! meanwhile. `world` checks each step; here is what happens, and what must be true in the end.

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use shared::backoff::Backoff;
use shared::config::{PipelineConfig, Weight};
use shared::id::RunId;
use shared::name::PipelineName;
use shared::outcome::FollowUp;

use super::world::{World, complete, config, key, name};
use crate::ledger::transition::{RetryPolicy, Verdict};
use crate::notice::Notice;
use crate::run::{Priority, RunState};

const PIPELINES: [&str; 3] = ["plan", "slice", "other"];
const PRIORITIES: [Priority; 3] = [Priority::Low, Priority::Normal, Priority::High];

/// How large and how wild.
struct Scale {
    seed: u64,
    /// Batches that are submitted, without follow-ups.
    batches: u64,
    keys: u64,
    /// Largest window of a pipeline.
    window: u32,
    per_key: Option<u32>,
    /// Batches of a tenant that is there from the beginning and cancelled in the end.
    giant: u64,
}

struct Simulation {
    world: World,
    scale: Scale,
    random: StdRng,
    runs: Vec<RunId>,
    submitted: u64,
    events: u64,
    max_heads: usize,
}

impl Simulation {
    fn new(scale: Scale) -> Self {
        let sized = |config: PipelineConfig| PipelineConfig {
            window_min: scale.window.div_ceil(10),
            window_max: scale.window,
            ..config
        };
        let plan = PipelineConfig {
            feeds: [name("slice")].into(),
            downstream_limit: scale.window,
            weights: [(key("k1"), Weight::try_from(5.0).unwrap())].into(),
            ..sized(config(1, scale.per_key))
        };
        let slice = PipelineConfig {
            weights: [(key("k0"), Weight::try_from(0.3).unwrap())].into(),
            ..sized(config(1, None))
        };
        let other = sized(config(1, scale.per_key));
        Self {
            world: World::new(PIPELINES.into_iter().zip([plan, slice, other])),
            random: StdRng::seed_from_u64(scale.seed),
            scale,
            runs: vec![],
            submitted: 0,
            events: 0,
            max_heads: 0,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    fn up_to(&mut self, most: usize) -> usize {
        self.random.random_range(0..=most)
    }

    fn any<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.random).unwrap()
    }

    /// One of the runs that are not finished, mostly.
    fn any_run(&mut self) -> Option<RunId> {
        self.runs.choose(&mut self.random).copied()
    }

    fn any_pipeline(&mut self) -> PipelineName {
        name(self.any(&PIPELINES))
    }

    /// A run over many keys, some of which get much more than others.
    fn submit(&mut self, count: u64) {
        let run = RunId::generate();
        let pipeline = self.any_pipeline();
        let priority = self.any(&PRIORITIES);
        let mut left = count;
        while left > 0 {
            let whose = key(&format!(
                "k{}",
                self.random.random_range(0..self.scale.keys)
            ));
            let share = self.random.random_range(1..=left.min(100));
            self.world
                .ledger
                .submit(run, priority, &pipeline, &whose, share, self.world.now);
            left -= share;
        }
        self.submitted += count;
        self.runs.push(run);
        self.news(Notice::Accepted(run));
    }

    /// What goes on all the time: each part does some of its work.
    fn work(&mut self) {
        for pipeline in PIPELINES {
            let limit = self.random.random_range(1..=512);
            self.world.take(pipeline, limit);
        }
        for _ in 0..self.up_to(self.world.flying.len()) {
            let index = self.random.random_range(0..self.world.flying.len());
            if self.chance(1) {
                let seems = self.chance(50);
                self.world.fail(index, seems);
            } else {
                self.world.publish(index);
            }
        }
        let confirmed = self.up_to(self.world.confirmed.len());
        self.world.record(confirmed);
        for _ in 0..self.up_to(self.world.broker.len()) {
            let index = self.random.random_range(0..self.world.broker.len());
            if self.random.random_ratio(1, 500) {
                let lost = self.world.broker.swap_remove(index);
                self.world.lost.push(lost);
            } else {
                let verdict = self.verdict(index);
                self.world.settle(index, verdict);
            }
        }
        for _ in 0..self.up_to(self.world.answers.len()) {
            self.world.hear_answer();
        }
        for _ in 0..self.up_to(self.world.notices.len()) {
            self.world.hear();
        }
        let pause = self.random.random_range(0..100);
        self.world.wait(pause);
    }

    fn verdict(&mut self, index: usize) -> Verdict {
        let (batch, _) = self.world.broker[index];
        let backlog = self.world.ledger.backlog_of(batch);
        let mut verdict = complete();
        if backlog.pipeline == name("plan")
            && let Verdict::Complete { follow_ups, .. } = &mut verdict
        {
            follow_ups.push(FollowUp {
                pipeline: name("slice"),
                key: backlog.key.clone(),
                payload: serde_json::value::RawValue::from_string("{}".into()).unwrap(),
            });
        }
        let after = Duration::from_millis(self.random.random_range(0..5_000));
        let reason = || "simulated".to_owned();
        match self.random.random_range(0..100) {
            0..4 => Verdict::Retry {
                error: reason(),
                after: Some(after),
                policy: RetryPolicy {
                    max_attempts: 5,
                    backoff: Backoff::RECONNECT,
                },
                random: 0.5,
            },
            4..6 => Verdict::Hold {
                reason: reason(),
                after,
            },
            6 => Verdict::Release { reason: reason() },
            7 => Verdict::Kill {
                reason: reason(),
                error: String::new(),
            },
            _ => verdict,
        }
    }

    /// Something that happens now and then.
    fn event(&mut self) {
        self.events += 1;
        match self.random.random_range(0..13) {
            0 => {
                let most = self.scale.window;
                let slots = PIPELINES.map(|pipeline| {
                    let slots = self.random.random_range(0..most);
                    (name(pipeline), slots)
                });
                self.news(Notice::Slots(slots.into()));
            }
            1 => {
                let paused = self.chance(40);
                let pipeline = self.any_pipeline();
                self.news(Notice::PipelinePaused(pipeline, paused));
            }
            2..5 => self.park(),
            5 | 6 => self.pause_or_resume(),
            7 => {
                let priority = self.any(&PRIORITIES);
                if let Some(run) = self.any_run() {
                    self.world.ledger.run(run).priority = priority;
                    self.news(Notice::Changed(run));
                }
            }
            8 if self.chance(20) => {
                if let Some(run) = self.any_run() {
                    self.cancel(run);
                }
            }
            9 => {
                let backlogs = self.world.ledger.redrive(50, self.world.now);
                self.news(Notice::Pending(backlogs));
            }
            10 => self.world.reconcile(),
            12 => {
                if let Some((batch, attempt)) = self.world.called_lost.pop() {
                    self.world.judge(batch, attempt, complete());
                }
            }
            11 => {
                // A minute has passed since the last look: what was known then was heard since.
                self.world.hear_all();
                self.world.compare();
                self.world.look_downstream();
            }
            _ => {}
        }
    }

    fn news(&mut self, notice: Notice) {
        self.world.notices.push_back(notice);
    }

    /// A key, or everybody, for up to two seconds; or not any more.
    fn park(&mut self) {
        let all = self.chance(10);
        let whose = (!all).then(|| key(&format!("k{}", self.up_to(20))));
        let milliseconds = self.random.random_range(-1_000..2_000);
        let notice = Notice::Parked {
            pipelines: vec![self.any_pipeline(), self.any_pipeline()],
            key: whose,
            until: self.world.now + SignedDuration::from_millis(milliseconds),
        };
        self.news(notice);
    }

    fn pause_or_resume(&mut self) {
        let Some(run) = self.any_run() else {
            return;
        };
        let state = &mut self.world.ledger.run(run).state;
        let notice = match state {
            RunState::Running => {
                *state = RunState::Paused;
                Notice::Stopped(run)
            }
            RunState::Paused => {
                *state = RunState::Running;
                Notice::Changed(run)
            }
            _ => return,
        };
        self.news(notice);
    }

    fn cancel(&mut self, run: RunId) {
        self.world.ledger.run(run).state = RunState::Cancelled;
        self.news(Notice::Stopped(run));
        self.world.ledger.cancel_pending(run);
    }

    /// What must be true at any time, and takes a moment to see.
    fn check(&mut self) {
        self.world.ledger.check_conservation();
        for pipeline in ["slice", "other"] {
            self.world.check_nothing_waits(pipeline);
        }
        self.max_heads = self.max_heads.max(self.world.dispatcher.heads());
    }

    fn run(mut self, checks: u64) {
        let giant = RunId::generate();
        if self.scale.giant > 0 {
            let (pipeline, whose) = (name("other"), key("giant"));
            let now = self.world.now;
            self.world.ledger.submit(
                giant,
                Priority::High,
                &pipeline,
                &whose,
                self.scale.giant,
                now,
            );
            self.news(Notice::Accepted(giant));
        }
        let mut rounds = 0;
        let mut next_check = 0;
        loop {
            if self.submitted < self.scale.batches {
                let piece = self.scale.batches.div_ceil(100);
                self.submit(piece);
            }
            self.work();
            self.event();
            rounds += 1;
            let done = self.world.ledger.finished();
            if done >= next_check {
                self.check();
                next_check += self.scale.batches.div_ceil(checks);
            }
            if done >= self.scale.batches * 9 / 10 || rounds > self.scale.batches {
                break;
            }
        }
        self.settle_down(giant);
    }

    /// Faults heal: everything comes to its end.
    fn settle_down(mut self, giant: RunId) {
        if self.scale.giant > 0 {
            self.cancel(giant);
        }
        for run in std::mem::take(&mut self.runs) {
            let state = &mut self.world.ledger.run(run).state;
            if *state == RunState::Paused {
                *state = RunState::Running;
                self.news(Notice::Changed(run));
            }
        }
        for pipeline in PIPELINES {
            self.world
                .notices
                .push_back(Notice::PipelinePaused(name(pipeline), false));
        }
        self.world.finish();
        // A page for each key of each pipeline: the more keys, the smaller.
        let pages = usize::try_from(self.scale.keys).unwrap() * PIPELINES.len();
        assert!(
            self.max_heads < 512 * pages.min(40) + 8 * pages,
            "{}",
            self.max_heads
        );
        eprintln!(
            "heads {} of {pages} pages, events {}",
            self.max_heads, self.events
        );
    }
}

#[test]
fn a_million_batches_of_ten_thousand_keys() {
    let started = Instant::now();
    let simulation = Simulation::new(Scale {
        seed: 1,
        batches: 1_000_000,
        keys: 10_000,
        window: 1_000,
        per_key: Some(3),
        giant: 10_000_000,
    });
    simulation.run(20);
    eprintln!("{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_goes_out_exactly_once(
        seed in any::<u64>(),
        batches in 1..2_000u64,
        keys in 1..20u64,
        window in 1..50u32,
        per_key in proptest::option::of(1..5u32),
    ) {
        let giant = 0;
        Simulation::new(Scale { seed, batches, keys, window, per_key, giant }).run(50);
    }
}
