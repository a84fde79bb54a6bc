//! Runs that submit themselves, while the coordinator is killed around them.

use std::time::{Duration, SystemTime};

use harness::emulator::{NO_LIMITS, NO_QUOTAS};
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use harness::wait;
use jiff::{SignedDuration, Timestamp};
use scenario::search_console::{READABLE, SYNC_LIMIT, Sync};

const EVERY_SECOND: &str = r#"
[pipelines.noop]
handler = "noop"
sink = false

[schedules.often]
cron = "* * * * * *"
pipeline = "noop"
batches = [{ key = "a", payload = { n = 1 } }, { key = "b", payload = { n = 2 } }]
"#;
const KILLS: u32 = 6;
const SOON: Duration = Duration::from_mins(1);

/// Sleeps until this long after a full second: firings are at full seconds.
async fn past_the_second(milliseconds: u64) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let into = Duration::from_nanos(now.subsec_nanos().into());
    let next = Duration::from_secs(1).saturating_sub(into);
    tokio::time::sleep(next + Duration::from_millis(milliseconds)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_firing_is_one_run_however_often_the_coordinator_is_killed() {
    let mut stack = Stack::new(broker(), EVERY_SECOND).unwrap();
    stack.start_coordinator().await.unwrap();
    for kill in 0..KILLS {
        let before = stack.api.runs().await.unwrap().len();
        wait::until("a firing", SOON, async || {
            Ok((stack.api.runs().await?.len() > before).then_some(()))
        })
        .await
        .unwrap();
        // Just before, while, and just after something is submitted and remembered.
        past_the_second(u64::from(kill) * 3).await;
        stack.coordinator().kill().unwrap();
        stack.start_coordinator().await.unwrap();
    }
    let view = stack.api.schedules().await.unwrap().remove(0);
    let ready = view.next.unwrap();
    let view = wait::until("the firings of the last outage", SOON, async || {
        let view = stack.api.schedules().await?.remove(0);
        Ok(view.last.is_some_and(|last| last >= ready).then_some(view))
    })
    .await
    .unwrap();
    stack.coordinator().kill().unwrap();

    // Keys are unique; that there is one for each second says that none is missing either.
    let ledger = stack.ledger().await.unwrap();
    let runs = ledger.number("select count(*) from runs").await.unwrap();
    let time = "unixepoch(substr(idempotency_key, length('schedule:often:') + 1))";
    let seconds = format!("select max({time}) - min({time}) + 1 from runs");
    assert_eq!(runs, ledger.number(&seconds).await.unwrap());
    assert!(runs > u64::from(KILLS));
    let whole = "select count(*) from runs where accepted = 2 and state <> 'submitting'";
    assert_eq!(runs, ledger.number(whole).await.unwrap());
    assert_eq!((view.timezone.as_str(), view.problem), ("UTC", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_sync_is_a_sync() {
    const DAYS: u32 = 3;
    let soon = Timestamp::now() + SignedDuration::from_secs(20);
    let cron = soon
        .to_zoned(jiff::tz::TimeZone::UTC)
        .strftime("%-S %-M %-H * * *")
        .to_string();
    let properties = READABLE.join("\", \"");
    let nightly = format!(
        "{NO_LIMITS}[schedules.nightly]\ncron = \"{cron}\"\nsearch_console = {{ properties = [\"{properties}\"], days = {DAYS} }}\n"
    );
    let mut stack = Stack::new(broker(), &nightly).unwrap();
    let emulator = stack.start_emulator(NO_QUOTAS).await.unwrap();
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let fired = wait::until("the schedule to fire", SYNC_LIMIT, async || {
        Ok(stack.api.schedules().await?.remove(0).last_run)
    })
    .await
    .unwrap();
    let run = stack.api.wait_until_ended(fired, SYNC_LIMIT).await.unwrap();
    assert_eq!(run.batches.completed, run.batches.accepted, "{run:?}");
    let sync = Sync {
        stack,
        emulator,
        days: DAYS,
    };
    sync.assert_truth(&READABLE).await.unwrap();
}
