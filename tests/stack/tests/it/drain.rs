//! A worker that is asked to stop finishes what it runs and hands back the rest.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::rabbitmq::shared as broker;
use harness::wait;
use nix::sys::signal::Signal;
use scenario::rolling::fleet_of_four;
use scenario::script::{PIPELINE, Scripted};
use scenario::sleeper::{self, Sleeper, Task, lines, taken_over};

const SOON: Duration = Duration::from_secs(30);
/// What Kubernetes gives a container by default; the worker's default drain timeout leaves 5 s of it.
const GRACE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_mins(2);

fn batches(count: u32) -> String {
    (0..count)
        .map(|n| harness::api::line(&format!("key-{n}"), &n.into()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_finishes_what_runs_and_returns_the_rest() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "2");
    // All of them at once, though they are long.
    scripted.stack.set("TIDEGATE_WORKER__LOOK_AHEAD_MIN", "32");
    scripted.start_worker("a").await.unwrap();
    let run = scripted
        .stack
        .api
        .submit(PIPELINE, batches(10))
        .await
        .unwrap();
    let running = scripted.wait_for_starts("a", 2, SOON).await.unwrap();

    scripted.stack.worker("a").signal(Signal::SIGTERM).unwrap();
    scripted.start_worker("b").await.unwrap();
    // What waited in a's prefetch buffer is done elsewhere while a still runs its two.
    let elsewhere = scripted.wait_for_starts("b", 8, SOON).await.unwrap();
    scripted.let_go("a").unwrap();
    assert_eq!(scripted.stack.worker("a").exit_code(SOON).unwrap(), 0);
    let report = scripted.stack.worker("a").output().unwrap();
    let report = report.lines().find(|line| line.contains("drained"));
    let report = report.unwrap_or_default();
    assert!(
        report.contains("finished=2 given_back=8 abandoned=0 left=0"),
        "{report}"
    );

    let ended = scripted
        .stack
        .api
        .wait_until_ended(run.run, SOON)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (10, 0),
        "{ended:?}"
    );
    assert_eq!((running.len(), elsewhere.len()), (2, 8));
    assert_eq!(
        scripted.starts().unwrap().len(),
        10,
        "every batch was started once"
    );
    let output = scripted.stack.worker("b").output().unwrap();
    assert!(!output.contains("runs a batch alone"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once_and_loses_nothing() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.start_worker("a").await.unwrap();
    let run = scripted
        .stack
        .api
        .submit(PIPELINE, batches(2))
        .await
        .unwrap();
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();
    let worker = scripted.stack.worker("a");
    worker.signal(Signal::SIGTERM).unwrap();
    worker.wait_for_line("drain", SOON).unwrap();
    worker.signal(Signal::SIGTERM).unwrap();
    worker.wait(Duration::from_secs(5)).unwrap();

    scripted.start_worker("b").await.unwrap();
    let ended = scripted
        .stack
        .api
        .wait_until_ended(run.run, SOON)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (2, 0),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_stops_and_goes_on_later() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.start_worker("a").await.unwrap();
    let run = scripted
        .stack
        .api
        .submit(PIPELINE, batches(5))
        .await
        .unwrap();
    scripted.wait_for_starts("a", 5, SOON).await.unwrap();
    assert_eq!(
        scripted.stack.coordinator().terminate(SOON).unwrap().code(),
        Some(0)
    );
    scripted.let_go("a").unwrap();
    scripted.stack.start_coordinator().await.unwrap();
    let ended = scripted
        .stack
        .api
        .wait_until_ended(run.run, SOON)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (5, 0),
        "{ended:?}"
    );
    assert_eq!(
        scripted.starts().unwrap().len(),
        5,
        "nothing was done twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_only_what_was_not_finished_is_delivered_again() {
    const LONG: u32 = 3;
    const SHORT: u32 = 400;
    const ALL: usize = (LONG + SHORT) as usize;
    let drain_timeout = Duration::from_secs(2);
    let mut sleeper = Sleeper::start(broker(), 8, drain_timeout).await.unwrap();
    sleeper.start_worker("a").await.unwrap();
    let api = sleeper.stack.api.clone();
    let task = |n| Task {
        n,
        ms: (n >= LONG).then_some(30),
    };
    let long = lines((0..LONG).map(task));
    let long = api.submit(sleeper::PIPELINE, long).await.unwrap();
    wait::until("the long ones to start", LIMIT, async || {
        Ok((sleeper.starts()?.len() == LONG as usize).then_some(()))
    })
    .await
    .unwrap();
    let short = lines((LONG..LONG + SHORT).map(task));
    let short = api.submit(sleeper::PIPELINE, short).await.unwrap();
    api.wait_for_run(short.run, "work to be under way", LIMIT, |run| {
        run.batches.completed >= 50
    })
    .await
    .unwrap();

    let told = Instant::now();
    sleeper.stack.worker("a").signal(Signal::SIGTERM).unwrap();
    sleeper.start_worker("b").await.unwrap();
    assert_eq!(sleeper.stack.worker("a").exit_code(LIMIT).unwrap(), 0);
    let took = told.elapsed();
    assert!(
        took >= drain_timeout,
        "the long ones were not waited for: {took:?}"
    );
    assert!(took < GRACE, "{took:?}");
    sleeper.let_go().unwrap();

    for (run, count) in [(long, LONG), (short, SHORT)] {
        let ended = api.wait_until_ended(run.run, LIMIT).await.unwrap();
        assert_eq!(
            (ended.batches.completed, ended.retries),
            (u64::from(count), 0),
            "{ended:?}"
        );
    }
    let rows = sleeper.rows().await.unwrap();
    let numbers: BTreeSet<u32> = rows.iter().map(|row| row.n).collect();
    assert_eq!((rows.len(), numbers.len()), (ALL, ALL));

    let again = taken_over(&sleeper.stack.worker("b").output().unwrap());
    let finished = rows.iter().filter(|row| row.worker == "a");
    for row in finished {
        assert!(!again.contains(&row.batch), "{row:?} was delivered again");
    }
    for long in rows.iter().filter(|row| row.n < LONG) {
        assert_eq!(long.worker, "b");
        assert!(again.contains(&long.batch), "{long:?}");
    }
    let starts = sleeper.starts().unwrap();
    assert_eq!(
        starts.len(),
        ALL + LONG as usize,
        "the long ones were started twice, all others once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_replaced_under_load() {
    fleet_of_four(broker(), 4_000).await.unwrap();
}
