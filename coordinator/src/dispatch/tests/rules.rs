//! One rule each.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use shared::config::{PipelineConfig, Weight};
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key};
use shared::outcome::FollowUp;

use super::world::{World, complete, config, key, name};
use crate::ledger::OutBatch;
use crate::ledger::transition::{State, Verdict};
use crate::notice::Notice;
use crate::run::{Priority, RunState};

const ANY: u32 = u32::MAX;

fn world(window: u32, per_key: Option<u32>) -> World {
    World::new([("work", config(window, per_key))])
}

impl World {
    /// A run with the default priority.
    fn submit_normal(&mut self, whose: &str, count: u64) -> RunId {
        self.submit("work", Priority::Normal, whose, count)
    }

    /// Everything taken so far is published, recorded and heard of.
    fn send(&mut self) {
        self.publish_all();
        self.record(self.confirmed.len());
        self.hear_all();
    }

    /// The batches that are out are completed, and that is heard of.
    fn complete_and_hear(&mut self, count: usize) {
        for _ in 0..count {
            self.settle(0, complete());
        }
        self.hear_all();
    }

    fn tell_and_hear(&mut self, notice: Notice) {
        self.notices.push_back(notice);
        self.hear_all();
    }

    fn taken_of(&self, whose: &str) -> usize {
        self.order
            .iter()
            .filter(|key| key.as_str() == whose)
            .count()
    }

    fn stop(&mut self, run: RunId, state: RunState) {
        self.ledger.run(run).state = state;
        self.tell_and_hear(Notice::Stopped(run));
    }

    fn resume(&mut self, run: RunId) {
        self.ledger.run(run).state = RunState::Running;
        self.tell_and_hear(Notice::Changed(run));
    }

    fn park(&mut self, whose: Option<&str>, until: Timestamp) {
        self.tell_and_hear(Notice::Parked {
            pipelines: vec![name("work")],
            key: whose.map(key),
            until,
        });
    }
}

fn in_seconds(world: &World, seconds: i64) -> Timestamp {
    world.now + SignedDuration::from_secs(seconds)
}

#[test]
fn the_window_bounds_what_is_out() {
    let mut world = world(10, None);
    world.submit_normal("a", 100);
    assert_eq!(world.take("work", ANY), 10);
    assert_eq!(world.take("work", ANY), 0);
    world.send();
    world.complete_and_hear(1);
    assert_eq!(world.take("work", ANY), 1);
}

#[test]
fn slots_size_the_window() {
    let config = PipelineConfig {
        window_min: 1,
        window_max: 1_000,
        ..PipelineConfig::default()
    };
    let mut world = World::new([("work", config)]);
    world.submit_normal("a", 10_000);
    assert_eq!(world.take("work", ANY), 1, "window_min without workers");
    world.tell_and_hear(Notice::Slots(HashMap::from([(name("work"), 3)])));
    assert_eq!(world.take("work", ANY), 3 * 4 - 1);
    world.tell_and_hear(Notice::Slots(HashMap::from([(name("work"), 1_000)])));
    assert_eq!(world.take("work", ANY), 1_000 - 3 * 4, "window_max");
    world.tell_and_hear(Notice::Slots(HashMap::new()));
    world.send();
    world.complete_and_hear(500);
    assert_eq!(world.take("work", ANY), 0, "the workers have left");
}

#[test]
fn ten_batches_leave_within_one_window_while_another_tenant_has_ten_million() {
    const WINDOW: u32 = 20;
    let mut world = world(WINDOW, None);
    world.submit_normal("big", 10_000_000);
    world.take("work", ANY);
    world.send();
    world.submit_normal("small", 10);
    world.order.clear();
    world.complete_and_hear(WINDOW as usize);
    world.take("work", ANY);
    assert_eq!(world.taken_of("small"), 10, "{:?}", world.order);
}

#[test]
fn a_key_keeps_to_its_own_limit() {
    let mut world = world(100, Some(3));
    world.submit_normal("a", 10);
    world.submit_normal("b", 2);
    assert_eq!(world.take("work", ANY), 5);
    world.send();
    let of_a = |world: &World, batch: BatchId| world.ledger.backlog_of(batch).key == key("a");
    let first = world
        .broker
        .iter()
        .position(|(batch, _)| of_a(&world, *batch));
    world.settle(first.unwrap(), complete());
    world.hear_all();
    assert_eq!(world.take("work", ANY), 1);
    world.finish();
    assert_eq!(world.ledger.count(State::Completed), 12);
}

#[test]
fn weights_share_the_window() {
    let weights = [("large", 3.0), ("tiny", 0.5)];
    let weights = weights.map(|(name, weight)| (key(name), Weight::try_from(weight).unwrap()));
    let config = PipelineConfig {
        weights: weights.into(),
        ..config(90, None)
    };
    let mut world = World::new([("work", config)]);
    for whose in ["large", "tiny", "plain"] {
        world.submit_normal(whose, 1_000);
    }
    for _ in 0..5 {
        world.take("work", ANY);
        world.send();
        world.complete_and_hear(90);
    }
    // 3 : 1 : 0.5 of 450, give or take a turn.
    let shares = ["large", "plain", "tiny"].map(|whose| world.taken_of(whose));
    for (share, expected) in shares.into_iter().zip([300, 100, 50]) {
        assert!(share.abs_diff(expected) <= 3, "{shares:?}");
    }
}

#[test]
fn a_turn_that_the_window_cut_short_goes_on() {
    let weights = [(key("large"), Weight::try_from(10.0).unwrap())];
    let config = PipelineConfig {
        weights: weights.into(),
        ..config(4, None)
    };
    let mut world = World::new([("work", config)]);
    world.submit_normal("large", 100);
    world.submit_normal("plain", 100);
    for _ in 0..11 {
        world.take("work", ANY);
        world.send();
        world.complete_and_hear(4);
    }
    assert_eq!(world.taken_of("plain"), 4, "{:?}", world.order);
}

#[test]
fn higher_priority_goes_first_within_a_key() {
    let mut world = world(1, None);
    let runs = [Priority::Low, Priority::High, Priority::Normal]
        .map(|priority| world.submit("work", priority, "a", 1));
    let mut order = vec![];
    for _ in 0..3 {
        world.take("work", ANY);
        order.push(world.flying[0].backlog.run);
        world.send();
        world.complete_and_hear(1);
    }
    assert_eq!(order, [runs[1], runs[2], runs[0]]);
}

#[test]
fn a_run_with_another_priority_changes_its_place() {
    let mut world = world(1, None);
    let (first, second) = (world.submit_normal("a", 10), world.submit_normal("a", 10));
    world.take("work", ANY);
    assert_eq!(world.flying[0].backlog.run, first);
    world.ledger.run(second).priority = Priority::High;
    world.tell_and_hear(Notice::Changed(second));
    world.send();
    world.complete_and_hear(1);
    world.take("work", ANY);
    assert_eq!(world.flying[0].backlog.run, second);
    world.finish();
}

#[test]
fn what_could_not_be_published_goes_out_again_with_the_same_attempt() {
    let mut world = world(5, None);
    world.submit_normal("a", 3);
    world.take("work", ANY);
    let failed = world.flying[1].clone();
    world.fail(1, false);
    world.send();
    assert_eq!(world.take("work", ANY), 1);
    assert_eq!(world.flying, [failed]);
    world.finish();
    assert_eq!(world.ledger.count(State::Completed), 3);
}

#[test]
fn what_was_out_before_a_restart_keeps_its_place() {
    let mut world = world(2, None);
    let out = OutBatch {
        id: BatchId::generate(),
        pipeline: name("work"),
        key: Key::default(),
    };
    assert!(world.dispatcher.was_out(out.clone()));
    let room = |world: &World| world.dispatcher.room(&name("work"), world.now);
    assert_eq!(room(&world), 1);
    world.dispatcher.settled(out.id, Attempt::new(1));
    assert_eq!(room(&world), 2);
    world.dispatcher.settled(out.id, Attempt::new(1));
    assert_eq!(room(&world), 2, "settling twice frees one place");
}

#[test]
fn a_retry_waits_until_it_is_due() {
    let mut world = world(10, None);
    world.submit_normal("a", 1);
    world.take("work", ANY);
    world.send();
    let wait = Verdict::Hold {
        reason: "throttled".into(),
        after: Duration::from_secs(30),
    };
    world.settle(0, wait);
    world.hear_all();
    assert_eq!(world.dispatcher.next_due(), Some(in_seconds(&world, 30)));
    world.wait(29_999);
    assert_eq!(world.take("work", ANY), 0);
    world.wait(1);
    assert_eq!(world.take("work", ANY), 1);
    assert_eq!(world.flying[0].batch.attempt, Attempt::new(1));
}

#[test]
fn a_batch_goes_out_again_although_the_first_news_of_it_was_lost() {
    let mut world = world(1, None);
    world.submit_normal("a", 1);
    world.take("work", ANY);
    world.send();
    let (batch, attempt) = world.broker[0];
    let wait = || Verdict::Hold {
        reason: "quota".into(),
        after: Duration::from_secs(30),
    };
    world.settle(0, wait());
    world.notices.clear();
    world.judge(batch, attempt, wait());
    world.hear_all();
    world.wait(30_000);
    assert_eq!(world.take("work", ANY), 1);
}

#[test]
fn parked_keys_hold_no_place_and_wake_by_themselves() {
    let mut world = world(10, None);
    let until = in_seconds(&world, 60);
    world.park(Some("a"), until);
    world.submit_normal("a", 100);
    world.submit_normal("b", 100);
    assert_eq!(world.take("work", ANY), 10);
    assert_eq!(world.taken_of("b"), 10, "the window belongs to the others");
    world.send();
    world.complete_and_hear(10);
    world.wait(60_000);
    world.take("work", ANY);
    assert_eq!(world.taken_of("a"), 5, "and is shared again");
}

#[test]
fn the_limit_that_is_used_up_for_longest_counts() {
    for whose in [Some("a"), None] {
        let mut world = world(10, None);
        world.submit_normal("a", 1);
        world.park(whose, in_seconds(&world, 60));
        world.park(whose, in_seconds(&world, 10));
        world.wait(59_999);
        assert_eq!(world.take("work", ANY), 0, "{whose:?}");
        world.wait(1);
        assert_eq!(world.take("work", ANY), 1, "{whose:?}");
    }
}

#[test]
fn parking_ends_when_a_later_word_says_so() {
    let mut world = world(10, None);
    world.submit_normal("a", 3);
    for whose in [Some("a"), None] {
        let until = in_seconds(&world, 3_600);
        world.park(whose, until);
        assert_eq!(world.take("work", ANY), 0);
        assert_eq!(world.dispatcher.next_due(), Some(until));
        world.park(whose, world.now);
        assert_eq!(world.take("work", 1), 1);
    }
}

#[test]
fn nothing_leaves_a_paused_pipeline() {
    let mut world = world(10, None);
    world.submit_normal("a", 100);
    world.tell_and_hear(Notice::PipelinePaused(name("work"), true));
    assert_eq!(world.take("work", ANY), 0);
    world.tell_and_hear(Notice::PipelinePaused(name("work"), false));
    assert_eq!(world.take("work", ANY), 10);
}

#[test]
fn nothing_of_a_stopped_run_leaves_and_its_places_are_freed() {
    let mut world = world(10, None);
    let run = world.submit_normal("a", 100);
    let other = world.submit_normal("b", 100);
    world.take("work", ANY);
    world.publish(0);
    // Nine are with the publishing task, one is on the broker; heads of both runs are in memory.
    world.stop(run, RunState::Paused);
    world.send();
    assert!(
        world.broker.len() < 10,
        "the payloads of a paused run are not given"
    );
    while world.take("work", ANY) > 0 {
        let others = world
            .flying
            .iter()
            .all(|dispatch| dispatch.backlog.run == other);
        assert!(others, "only the other run goes on");
        world.send();
        world.complete_and_hear(world.broker.len());
    }
    assert_eq!(world.ledger.count(State::Completed), 101);
    world.resume(run);
    world.finish();
    assert_eq!(world.ledger.count(State::Completed), 200);
}

#[test]
fn a_cancelled_run_is_forgotten() {
    let mut world = world(10, None);
    let run = world.submit_normal("a", 1_000_000);
    world.take("work", ANY);
    world.send();
    world.take("work", ANY);
    world.stop(run, RunState::Cancelled);
    world.ledger.cancel_pending(run);
    assert_eq!(world.dispatcher.heads(), 0);
    world.finish();
    assert_eq!(
        world.ledger.count(State::Completed),
        10,
        "what was out is what its outcome says"
    );
    assert_eq!(world.ledger.count(State::Cancelled), 999_990);
}

#[test]
fn redriven_batches_go_out_again() {
    let mut world = world(10, None);
    world.submit_normal("a", 3);
    world.take("work", ANY);
    world.send();
    let kill = Verdict::Kill {
        reason: "broken".into(),
        error: String::new(),
    };
    world.settle(0, kill);
    world.complete_and_hear(2);
    let backlogs = world.ledger.redrive(10, world.now);
    world.tell_and_hear(Notice::Pending(backlogs));
    assert_eq!(world.take("work", ANY), 1);
    world.finish();
    assert_eq!(world.ledger.count(State::Completed), 3);
}

/// `plan` asks for ten batches of `slice` each, of which ten may wait.
fn stages() -> World {
    let plan = PipelineConfig {
        feeds: [name("slice")].into(),
        downstream_limit: 10,
        ..config(4, None)
    };
    World::new([("plan", plan), ("slice", config(100, None))])
}

impl World {
    /// Sends what is taken, completes the plans and looks downstream.
    fn plan(&mut self) {
        self.send();
        while let Some((batch, _)) = self.broker.first().copied() {
            let whose = self.ledger.backlog_of(batch).key.clone();
            let follow_up = FollowUp {
                pipeline: name("slice"),
                key: whose,
                payload: serde_json::value::RawValue::from_string("{}".into()).unwrap(),
            };
            let mut verdict = complete();
            if let Verdict::Complete { follow_ups, .. } = &mut verdict {
                follow_ups.extend(std::iter::repeat_n(follow_up, 10));
            }
            self.settle(0, verdict);
        }
        self.hear_all();
        self.look_downstream();
    }
}

#[test]
fn a_full_stage_holds_back_the_one_before_it() {
    let mut world = stages();
    world.submit("plan", Priority::Normal, "big", 1_000);
    assert_eq!(world.take("plan", ANY), 4);
    world.plan();
    assert_eq!(world.take("plan", ANY), 0, "40 wait downstream");
    world.wait(60_000);
    world.look_downstream();
    assert_eq!(world.take("plan", ANY), 0, "time alone changes nothing");
    world.take("slice", ANY);
    world.send();
    world.complete_and_hear(30);
    world.look_downstream();
    assert_eq!(
        world.take("plan", ANY),
        4,
        "10 are left, which is room enough"
    );
    world.finish();
}

#[test]
fn a_full_stage_does_not_delay_who_has_nothing_in_it() {
    let mut world = stages();
    world.submit("plan", Priority::Normal, "big", 1_000);
    world.take("plan", ANY);
    world.plan();
    world.submit("plan", Priority::Normal, "small", 5);
    assert_eq!(world.take("plan", ANY), 1, "one batch at a time");
    assert_eq!(world.flying[0].backlog.key, key("small"));
    world.plan();
    for n in 0..10 {
        world.submit("plan", Priority::Normal, &format!("other-{n}"), 1);
    }
    assert_eq!(
        world.take("plan", ANY),
        0,
        "50 are more than four times the limit"
    );
    world.finish();
}

#[test]
fn a_place_whose_news_was_lost_is_freed_at_the_second_look() {
    let mut world = world(2, None);
    world.submit_normal("a", 3);
    world.take("work", ANY);
    world.send();
    assert_eq!((world.compare(), world.compare()), (0, 0), "both are out");
    world.settle(0, complete());
    let news = world.notices.pop_back();
    assert_eq!(world.compare(), 0, "the news may be on its way");
    assert_eq!(world.compare(), 1);
    assert_eq!(world.take("work", ANY), 1);
    world.notices.extend(news);
    world.hear_all();
    assert_eq!(world.dispatcher.out(), 2, "late news frees nothing else");
    world.finish();
}

#[test]
fn idle_keys_cost_nothing() {
    let mut world = world(50, None);
    for n in 0..500 {
        world.submit_normal(&format!("k{n}"), 2);
    }
    world.finish();
    assert_eq!(world.ledger.count(State::Completed), 1_000);
}
