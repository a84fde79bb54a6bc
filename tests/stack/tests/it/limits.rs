//! Limits hold over the whole fleet: they are used up, and not overrun, whatever happens to the coordinator.

use std::time::{Duration, Instant};

use coordinator::run::Run;
use harness::api::line;
use harness::limit_use::{LimitUse, Quota};
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use harness::wait;
use nix::sys::signal::Signal;
use serde_json::json;

/// Long enough to see a rate, short enough to be waited for; `tests/bench.sh limit_use` has the figure.
const SPAN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_workers_use_a_quota_up_and_do_not_overrun_it() {
    let limit_use = LimitUse::start(broker(), Quota::User, 16).await.unwrap();
    let usage = limit_use.measure(SPAN).await.unwrap();
    // How much of it is used depends on what else this machine does: `tests/bench.sh limit_use` has the figure.
    assert!(usage.share > 0.5, "{usage:?}");
    assert!(usage.share < 1.02, "{usage:?}");
    assert!(usage.rejected < 0.005, "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_restart_of_the_coordinator_makes_a_burst() {
    let mut limit_use = LimitUse::start(broker(), Quota::NewProject, 4)
        .await
        .unwrap();
    let before = limit_use.calls().await.unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        tokio::time::sleep(SPAN / 4).await;
        let coordinator = limit_use.stack.coordinator();
        coordinator.signal(signal).unwrap();
        coordinator.wait(SPAN).unwrap();
        limit_use.stack.start_coordinator().await.unwrap();
    }
    tokio::time::sleep(SPAN / 2).await;
    let usage = limit_use.since(&before).await.unwrap();
    let allowed = usage.seconds + 1.0;
    assert!(
        f64::from(u32::try_from(usage.calls).unwrap()) <= allowed,
        "{usage:?}"
    );
    assert!(usage.rejected <= 0.0, "{usage:?}");
    assert!(usage.share > 0.5, "calls go on: {usage:?}");
}

/// One call a second; the deadline is soon, so that a worker does not wait a minute for a coordinator.
const SLOW: &str = r#"
[limits.service]
rate = "1/s"
scope = "global"
[pipelines.calls]
command = ["true"]
limits = ["service"]
deadline = "8s"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_coordinator_work_is_given_back_and_taken_again() {
    let mut stack = Stack::new(broker(), SLOW).unwrap();
    // One after the other, so that there is always one that has to ask next.
    stack.set("TIDEGATE_WORKER__SLOTS", "1");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let lines: String = (0..20).map(|n| line("k", &json!({ "n": n }))).collect();
    let begin = Instant::now();
    let run = stack.api.submit("calls", lines).await.unwrap();
    let started = |run: &Run| run.batches.completed >= 2;
    stack
        .api
        .wait_for_run(run.run, "two calls", SPAN, started)
        .await
        .unwrap();
    stack.coordinator().kill().unwrap();
    let given_back = "giving work back until a coordinator answers";
    stack.worker("a").wait_for_line(given_back, SPAN).unwrap();
    // Everything is with the broker, for whoever can do it, and does not go round in circles.
    wait::until("the work to be given back", SPAN, async || {
        let depths = stack.vhost().queue_depths()?;
        let work = depths
            .iter()
            .filter(|(name, _)| name.starts_with("tidegate.work.calls."));
        let (ready, unacked) = work.fold((0, 0), |(ready, unacked), (_, depth)| {
            (ready + depth.ready, unacked + depth.unacked)
        });
        Ok((ready > 0 && unacked == 0).then_some(()))
    })
    .await
    .unwrap();
    stack.start_coordinator().await.unwrap();
    let run = stack.api.wait_until_ended(run.run, 2 * SPAN).await.unwrap();
    assert_eq!(run.batches.completed, 20, "{run:?}");
    assert_eq!(run.retries, 0, "no attempt was burnt: {run:?}");
    assert!(
        begin.elapsed() > Duration::from_secs(19),
        "one call a second"
    );
}
