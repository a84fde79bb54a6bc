use super::*;

const S: Duration = Duration::from_secs(1);
const PAUSES: Pauses = Pauses {
    first: Duration::from_mins(15),
    again: Duration::from_hours(14),
};
const TOO_FAST: Said = Said::TooFast {
    retry_after: None,
    persistent: Some(PAUSES),
};

/// A bucket and a clock.
struct Bench {
    policy: Policy,
    bucket: Bucket,
    now: Duration,
}

impl Bench {
    /// 5 calls a second to begin with, 20 at most.
    fn adaptive() -> Self {
        Self::new(&LimitConfig {
            rate: Some("20/s".to_owned().try_into().unwrap()),
            start: Some("5/s".to_owned().try_into().unwrap()),
            ..LimitConfig::default()
        })
    }

    fn without_rate() -> Self {
        Self::new(&LimitConfig::default())
    }

    fn new(config: &LimitConfig) -> Self {
        let policy = Policy::new(config);
        let now = 1_000 * S;
        Self {
            bucket: Bucket::new(&policy, now, false),
            policy,
            now,
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            at: self.now,
            wall: Timestamp::UNIX_EPOCH + self.now,
            random: 1.0,
        }
    }

    fn take(&mut self) -> Duration {
        let at = self.bucket.earliest(self.now, 1, &self.policy);
        self.bucket.take(at, 1);
        at
    }

    /// About a call that was asked for at this moment.
    fn hear(&mut self, said: &Said, asked_at: Duration) {
        let moment = self.moment();
        self.bucket.hear(said, asked_at, &self.policy, moment);
    }

    fn used_up_for(&self) -> Option<Duration> {
        let until = self.bucket.used_up_until(self.now)?;
        Some(until.abs_diff(self.now))
    }

    fn restarted(&mut self, unsaved: Option<Duration>) -> Self {
        let remembered = self.bucket.remember(&self.policy, self.moment());
        let json = serde_json::to_string(&remembered).unwrap();
        let remembered = serde_json::from_str(&json).unwrap();
        Self {
            policy: self.policy.clone(),
            bucket: Bucket::recalled(&remembered, &self.policy, self.moment(), unsaved),
            now: self.now,
        }
    }
}

#[test]
fn the_rate_climbs_with_accepted_calls_to_its_maximum() {
    let mut bench = Bench::adaptive();
    let apart = bench.take().abs_diff(bench.take());
    assert_eq!(
        apart.as_millis(),
        203,
        "a fifth of a second and some headroom"
    );
    let now = bench.now;
    for _ in 0..5 {
        bench.hear(&Said::Accepted, now);
    }
    assert!(
        (5.9..6.0).contains(&bench.bucket.rate),
        "one more after a second"
    );
    for _ in 0..500 {
        bench.hear(&Said::Accepted, now);
    }
    assert_eq!(bench.bucket.rate(), Some(20.0));
}

#[test]
fn too_fast_halves_once_for_calls_under_way_and_cools_down() {
    let mut bench = Bench::adaptive();
    let asked_at = bench.now;
    bench.now += S;
    for _ in 0..3 {
        bench.hear(&TOO_FAST, asked_at);
    }
    assert_eq!(bench.bucket.rate(), Some(2.5));
    assert_eq!(bench.take(), bench.now + 2 * S);
    bench.now += 3 * S;
    let asked_at = bench.now;
    let asked_for = Said::TooFast {
        retry_after: Some(30 * S),
        persistent: None,
    };
    bench.hear(&asked_for, asked_at);
    assert_eq!(bench.bucket.rate(), Some(1.25));
    assert_eq!(bench.take(), bench.now + 30 * S);
}

#[test]
fn the_longest_pause_that_the_service_asks_for_is_made() {
    for mut bench in [Bench::adaptive(), Bench::without_rate()] {
        let asked_at = bench.now;
        bench.now += S;
        for seconds in [5, 30, 10] {
            let said = Said::TooFast {
                retry_after: Some(seconds * S),
                persistent: None,
            };
            bench.hear(&said, asked_at);
        }
        assert_eq!(bench.take(), bench.now + 30 * S);
        assert_eq!(bench.bucket.too_fast, 1, "they were under way together");
    }
}

#[test]
fn a_rate_that_is_halved_for_ever_still_lets_a_call_through() {
    let mut bench = Bench::adaptive();
    for _ in 0..100 {
        bench.now += 100 * S;
        bench.hear(&TOO_FAST, bench.now);
    }
    assert_eq!(bench.bucket.rate(), Some(0.1));
    assert_eq!(bench.used_up_for(), None, "it has a rate: it is no quota");
}

#[test]
fn a_fixed_rate_is_not_halved_but_cools_down() {
    let mut bench = Bench::new(&LimitConfig {
        rate: Some("20/s".to_owned().try_into().unwrap()),
        ..LimitConfig::default()
    });
    bench.hear(&TOO_FAST, bench.now);
    assert_eq!(bench.bucket.rate(), Some(20.0));
    assert_eq!(bench.take(), bench.now + 2 * S);
}

#[test]
fn a_quota_is_left_alone_for_a_while_and_then_for_long() {
    let mut bench = Bench::without_rate();
    let before = bench.now;
    bench.now += S;
    bench.hear(&Said::UsedUp(PAUSES), before);
    bench.now += S;
    bench.hear(&Said::UsedUp(PAUSES), before);
    assert_eq!(
        bench.used_up_for(),
        Some(14 * 60 * S + 59 * S),
        "under way together"
    );
    bench.now += PAUSES.first;
    assert_eq!(bench.used_up_for(), None);
    let asked_at = bench.take();
    bench.hear(&Said::UsedUp(PAUSES), asked_at);
    assert_eq!(bench.used_up_for(), Some(PAUSES.again));
    bench.now += PAUSES.again;
    let asked_at = bench.take();
    bench.hear(&Said::UsedUp(PAUSES), asked_at);
    assert_eq!(bench.used_up_for(), Some(PAUSES.first), "a new day");
}

#[test]
fn an_accepted_call_after_the_pause_forgets_it() {
    let mut bench = Bench::without_rate();
    bench.hear(&Said::UsedUp(PAUSES), bench.now);
    bench.now += PAUSES.first;
    bench.hear(&Said::Accepted, Duration::ZERO);
    assert_ne!(bench.bucket.quota, Quota::Free, "that was from before");
    bench.hear(&Said::Accepted, bench.now);
    assert_eq!(bench.bucket.quota, Quota::Free);
}

#[test]
fn too_fast_that_persists_is_a_quota() {
    let mut bench = Bench::without_rate();
    for _ in 0..TOO_FAST_UNTIL_USED_UP {
        assert_eq!(bench.used_up_for(), None);
        bench.now += S;
        bench.hear(&TOO_FAST, bench.now);
    }
    assert_eq!(bench.used_up_for(), Some(PAUSES.first));
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut bench = Bench::adaptive();
    for _ in 0..7 {
        bench.take();
        bench.hear(&Said::Accepted, bench.now);
    }
    bench.hear(&Said::UsedUp(PAUSES), bench.now);
    let next = bench.bucket.earliest(bench.now, 1, &bench.policy);
    let mut again = bench.restarted(None);
    assert_eq!(again.bucket.rate(), bench.bucket.rate());
    assert_eq!(again.used_up_for(), Some(PAUSES.first));
    assert!(again.take().abs_diff(next) < Duration::from_micros(1));
}

#[test]
fn a_crash_is_taken_for_a_busy_time_and_makes_no_burst() {
    let config = LimitConfig {
        rate: Some("1/s".to_owned().try_into().unwrap()),
        burst: 10,
        ..LimitConfig::default()
    };
    let mut bench = Bench::new(&config);
    for _ in 0..10 {
        assert_eq!(bench.take(), bench.now);
    }
    let mut crashed = bench.restarted(Some(4 * S));
    let first = crashed.take();
    assert!(first >= bench.now + 4 * S, "{first:?}");
    assert!(crashed.take() >= first + S);
    let unknown = Bucket::new(&bench.policy, bench.now, true);
    let first = unknown.earliest(bench.now, 1, &bench.policy);
    assert!(first >= bench.now + S, "{first:?}");
}

#[test]
fn nothing_is_known_of_an_idle_bucket() {
    let mut bench = Bench::adaptive();
    assert!(bench.bucket.is_like_new(&bench.policy, bench.now));
    let at = bench.take();
    assert!(!bench.bucket.is_like_new(&bench.policy, bench.now));
    bench.now = at + 10 * S;
    let pace = bench.bucket.pace(&bench.policy);
    bench.bucket.line.pass(bench.now, pace);
    assert!(bench.bucket.is_like_new(&bench.policy, bench.now));
    bench.hear(&Said::Accepted, at);
    assert!(
        !bench.bucket.is_like_new(&bench.policy, bench.now),
        "it has learnt"
    );
}
