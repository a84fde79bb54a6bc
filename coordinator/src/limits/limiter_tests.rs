use std::collections::VecDeque;

use jiff::Timestamp;
use proptest::prelude::*;
use shared::ask::{About, Pauses, Said, Want};
use shared::config::{LimitConfig, PipelineConfig, Rate};

use super::*;

const S: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_mins(1);

fn rate(text: &str) -> Rate {
    Rate::try_from(text.to_owned()).unwrap()
}

fn name(name: &str) -> LimitName {
    LimitName::new(name).unwrap()
}

fn pipeline() -> PipelineName {
    PipelineName::new("calls").unwrap()
}

/// `site`: 60 calls a minute and key; `project`: 600 for all; `load`: no rate; one pipeline under the first two.
fn config() -> Config {
    let limit = |rate, scope| LimitConfig {
        rate,
        scope,
        ..LimitConfig::default()
    };
    let pipeline_config = PipelineConfig {
        limits: vec![name("site"), name("project")],
        ..PipelineConfig::default()
    };
    Config {
        limits: BTreeMap::from([
            (name("site"), limit(Some(rate("60/min")), LimitScope::Key)),
            (
                name("project"),
                limit(Some(rate("600/min")), LimitScope::Global),
            ),
            (name("load"), limit(None, LimitScope::Key)),
        ]),
        pipelines: BTreeMap::from([(pipeline(), pipeline_config)]),
        ..Config::default()
    }
}

struct Bench {
    limiter: Limiter,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        Self {
            limiter: Limiter::new(&config()),
            now: 1_000 * S,
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            at: self.now,
            wall: Timestamp::UNIX_EPOCH + self.now,
            random: 1.0,
        }
    }

    fn ask(&mut self, limits: &[&str], key: &str) -> PermitAnswer {
        let want = |limit: &&str| Want {
            limit: name(limit),
            key: Key::new(key).unwrap(),
            n: 1,
        };
        let request = PermitRequest {
            pipeline: pipeline(),
            wants: limits.iter().map(want).collect(),
            patience: PATIENCE,
        };
        let moment = self.moment();
        self.limiter.permit(&request, moment)
    }

    /// The moment at which a call may start.
    fn granted(&mut self, limits: &[&str], key: &str) -> Option<Duration> {
        match self.ask(limits, key) {
            PermitAnswer::Granted { after } => Some(self.now + after),
            _ => None,
        }
    }

    fn say(&mut self, limit: &str, key: &str, said: Said) {
        let about = vec![About {
            limit: name(limit),
            key: Key::new(key).unwrap(),
        }];
        let feedback = Feedback {
            about,
            asked_ago: Duration::ZERO,
            said,
        };
        let moment = self.moment();
        self.limiter.feedback(&feedback, moment);
    }

    fn view(&mut self, limit: &str) -> LimitView {
        let moment = self.moment();
        let mut views = self.limiter.views(moment).into_iter();
        views.find(|view| view.limit == name(limit)).unwrap()
    }

    fn restart(&mut self, stopped: bool) {
        let moment = self.moment();
        let remembered = self.limiter.remember(moment, stopped);
        self.limiter = Limiter::new(&config());
        self.limiter.recall(&remembered, 4 * S, moment);
    }
}

#[test]
fn each_key_has_its_own_line_and_all_share_the_widest() {
    let mut bench = Bench::new();
    let first = bench.granted(&["site", "project"], "a").unwrap();
    assert_eq!(first, bench.now);
    let second = bench.granted(&["site", "project"], "a").unwrap();
    assert_eq!(second.abs_diff(first).as_millis(), 1_015);
    let other = bench.granted(&["site", "project"], "b").unwrap();
    assert_eq!(
        other.abs_diff(first).as_millis(),
        101,
        "behind a's first, before a's second"
    );
}

#[test]
fn a_call_that_one_limit_refuses_takes_no_place_in_the_others() {
    let mut bench = Bench::new();
    while bench.granted(&["site"], "a").is_some() {}
    for _ in 0..1_000 {
        assert_eq!(bench.granted(&["site", "project"], "a"), None);
    }
    assert_eq!(bench.granted(&["project"], "a"), Some(bench.now));
}

#[test]
fn a_wait_for_a_narrow_limit_holds_nobody_up_in_a_wide_one() {
    let mut bench = Bench::new();
    for _ in 0..59 {
        bench.granted(&["site", "project"], "slow").unwrap();
    }
    for quick in 0..100 {
        let key = format!("quick-{quick}");
        let at = bench.granted(&["site", "project"], &key).unwrap();
        assert!(at < bench.now + 15 * S, "{at:?}");
    }
}

#[test]
fn unknown_limits_are_named_and_nothing_asked_is_nothing_refused() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.ask(&["site", "nope"], "a"),
        PermitAnswer::Unknown {
            limit: name("nope")
        }
    );
    assert_eq!(bench.granted(&[], "a"), Some(bench.now));
}

#[test]
fn a_line_that_is_too_long_parks_the_key_until_it_is_shorter() {
    let mut bench = Bench::new();
    let mut last = bench.now;
    while let Some(at) = bench.granted(&["site"], "a") {
        last = at;
    }
    assert!(last + 2 * S > bench.now + PATIENCE);
    let PermitAnswer::Parked { after, until, .. } = bench.ask(&["site"], "a") else {
        panic!("it has room");
    };
    assert!(after > PATIENCE / 3 && after < PATIENCE, "{after:?}");
    assert_eq!(until, None, "no quota");
    let news = bench.limiter.take_news();
    let [
        Notice::Parked {
            pipelines,
            key,
            until,
        },
    ] = &news[..]
    else {
        panic!("{news:?}");
    };
    assert_eq!(pipelines, &[pipeline()]);
    assert_eq!(key.as_ref().map(Key::as_str), Some("a"));
    assert!(*until < Timestamp::UNIX_EPOCH + last);
    bench.now += after;
    assert!(bench.granted(&["site"], "a").is_some());
}

#[test]
fn a_shared_limit_parks_everybody() {
    let mut bench = Bench::new();
    let said = Said::TooFast {
        retry_after: Some(90 * S),
        persistent: None,
    };
    bench.say("project", "whoever", said);
    let parked = bench.limiter.take_news();
    assert!(
        matches!(&parked[..], [Notice::Parked { key: None, .. }]),
        "{parked:?}"
    );
    let PermitAnswer::Parked { after, .. } = bench.ask(&["site", "project"], "a") else {
        panic!("it may call");
    };
    assert_eq!(after, 90 * S);
}

/// A credential's limit, whose key is no batch's.
#[test]
fn a_key_that_is_no_batchs_holds_the_batches_that_ask_for_it() {
    let mut config = config();
    config.limits.insert(name("user"), LimitConfig::default());
    let limits = &mut config.pipelines.get_mut(&pipeline()).unwrap().limits;
    limits.push(name("user"));
    let mut bench = Bench::new();
    bench.limiter = Limiter::new(&config);
    let pauses = Pauses {
        first: 900 * S,
        again: 9_000 * S,
    };
    bench.say("user", "robot", Said::UsedUp(pauses));
    bench.limiter.take_news();
    let want = |(limit, key)| Want {
        limit: name(limit),
        key: Key::new(key).unwrap(),
        n: 1,
    };
    for site in ["a", "b"] {
        let request = PermitRequest {
            pipeline: pipeline(),
            wants: [("site", site), ("project", site), ("user", "robot")]
                .map(want)
                .into(),
            patience: PATIENCE,
        };
        let moment = bench.moment();
        let answer = bench.limiter.permit(&request, moment);
        assert!(matches!(answer, PermitAnswer::Parked { .. }), "{answer:?}");
        let news = bench.limiter.take_news();
        let [
            Notice::Parked {
                key: Some(key),
                until,
                ..
            },
        ] = &news[..]
        else {
            panic!("{news:?}");
        };
        assert_eq!((key.as_str(), *until), (site, moment.wall + pauses.first));
    }
}

#[test]
fn a_quota_that_is_used_up_holds_those_who_fall_under_it() {
    let mut bench = Bench::new();
    let pauses = Pauses {
        first: 900 * S,
        again: 9_000 * S,
    };
    bench.say("load", "a", Said::UsedUp(pauses));
    let expected = PermitAnswer::Parked {
        reason: "the quota of load is used up".to_owned(),
        after: pauses.first,
        until: Some(Timestamp::UNIX_EPOCH + bench.now + pauses.first),
    };
    assert_eq!(bench.ask(&["site", "load"], "a"), expected);
    assert!(bench.granted(&["site"], "a").is_some());
    assert!(bench.granted(&["site", "load"], "b").is_some());
    assert!(
        !bench.limiter.has_news(),
        "no pipeline falls under it as a whole"
    );
}

#[test]
fn busy_keys_are_bounded_and_idle_ones_are_forgotten() {
    let mut config = config();
    config.limits.get_mut(&name("site")).unwrap().max_keys = 100;
    let mut bench = Bench::new();
    bench.limiter = Limiter::new(&config);
    for key in 0..100 {
        assert!(bench.granted(&["site"], &key.to_string()).is_some());
    }
    assert_eq!(bench.granted(&["site"], "one more"), None);
    bench.now += 2 * S;
    assert!(bench.granted(&["site"], "one more").is_some());
    let moment = bench.moment();
    assert_eq!(
        bench.limiter.views(moment).len(),
        1 + 2,
        "and two that nobody has used"
    );

    bench.now += 2 * FORGOTTEN_AFTER;
    let moment = bench.moment();
    bench.limiter.forget(moment);
    assert_eq!(bench.view("site").key, None);
}

#[test]
fn a_restart_in_good_order_goes_on_and_a_crash_holds_back() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        bench.granted(&["site", "project"], "a").unwrap();
    }
    bench.restart(true);
    let sixth = bench.granted(&["site", "project"], "a").unwrap();
    assert_eq!(sixth.abs_diff(bench.now).as_millis(), 5 * 1_015);
    bench.restart(false);
    let seventh = bench.granted(&["site", "project"], "a").unwrap();
    assert!(seventh > sixth + 4 * S, "{seventh:?}");
    let other = bench.granted(&["site"], "b").unwrap();
    assert!(other > bench.now, "it may have been busy, too");
}

#[test]
fn a_line_that_becomes_longer_than_is_remembered_says_so() {
    let mut bench = Bench::new();
    bench.granted(&["site"], "a").unwrap();
    assert!(!bench.limiter.runs_ahead(), "a second ahead");
    for _ in 0..20 {
        for _ in 0..2 {
            bench.granted(&["site"], "a").unwrap();
        }
        assert!(bench.limiter.runs_ahead());
        // Killed right after this, it does not let out too much.
        let moment = bench.moment();
        bench.limiter.remember(moment, false);
        assert!(!bench.limiter.runs_ahead());
    }
    let before = bench.granted(&["site"], "a").unwrap();
    bench.restart(false);
    assert!(bench.granted(&["site"], "a").unwrap() > before);
}

#[test]
fn nothing_is_granted_after_the_last_words() {
    let mut bench = Bench::new();
    let moment = bench.moment();
    bench.limiter.remember(moment, true);
    assert_eq!(bench.granted(&["site"], "a"), None);
}

#[test]
fn a_view_says_where_a_key_stands() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.granted(&["site"], "a").unwrap();
    }
    let moment = bench.moment();
    let view = bench.view("site");
    assert_eq!(view.key.as_ref().map(Key::as_str), Some("a"));
    assert_eq!((view.granted, view.parked, view.waiting), (3, 0, 2));
    assert_eq!(view.rate_per_minute, Some(60.0));
    assert!(view.next.unwrap() > moment.wall + 3 * S);
    assert_eq!(view.parked_until, None);
}

/// A service that counts calls in the last minute, as Google does.
#[derive(Default)]
struct Service {
    calls: VecDeque<Duration>,
    accepted: u32,
    rejected: u32,
}

impl Service {
    fn call(&mut self, at: Duration, limit: usize) {
        while self.calls.front().is_some_and(|call| *call + 60 * S <= at) {
            self.calls.pop_front();
        }
        if self.calls.len() < limit {
            self.calls.push_back(at);
            self.accepted += 1;
        } else {
            self.rejected += 1;
        }
    }
}

/// So many callers at once, each of which calls again as soon as it may; calls arrive late by up to half a second.
fn share_used(limit: usize, callers: usize, random: &[u64]) -> (f64, u32) {
    let mut config = config();
    let per_minute = rate(&format!("{limit}/min"));
    config.limits.get_mut(&name("site")).unwrap().rate = Some(per_minute);
    let mut bench = Bench::new();
    bench.limiter = Limiter::new(&config);
    let start = bench.now;
    let end = start + 300 * S;
    // When each caller asks next, and calls on their way.
    let mut asking: Vec<Duration> = vec![start; callers];
    let mut calls: Vec<Duration> = Vec::new();
    let mut random = random.iter().cycle();
    while let Some((caller, at)) = asking.iter().copied().enumerate().min_by_key(|(_, at)| *at)
        && at < end
    {
        bench.now = at;
        asking[caller] = match bench.ask(&["site"], "a") {
            PermitAnswer::Granted { after } => {
                let late = Duration::from_millis(random.next().unwrap() % 500);
                calls.push(at + after + late);
                at + after + late
            }
            PermitAnswer::Parked { after, .. } => at + after,
            PermitAnswer::Unknown { .. } => unreachable!(),
        };
    }
    calls.sort();
    let mut service = Service::default();
    for call in calls.into_iter().filter(|call| *call < end) {
        service.call(call, limit);
    }
    let allowed = u32::try_from(limit * 5).unwrap();
    (
        f64::from(service.accepted) / f64::from(allowed),
        service.rejected,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn a_count_in_a_minute_is_used_up_and_not_exceeded(
        random in proptest::collection::vec(any::<u64>(), 50..200),
        callers in 3_usize..300,
    ) {
        for limit in [1_200, 60] {
            // Fewer callers than it takes cannot use the rate.
            let callers = callers.max(limit / 60 * 2);
            let (share, rejected) = share_used(limit, callers, &random);
            prop_assert!(share >= 0.97, "{share} of {limit}");
            prop_assert_eq!(rejected, 0);
        }
    }
}
