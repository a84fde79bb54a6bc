//! The broker loses what it has confirmed, or the ledger what it has settled: the run completes all the same, and
//! nothing takes effect twice.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::rabbitmq::{RabbitMq, shared as broker};
use harness::wait;
use scenario::script::{PIPELINE, Scripted};
use scenario::search_console::{Database, READABLE, Sync, finished};
use shared::id::RunId;

/// A run completes within this once the broker is back.
const HEALED: Duration = Duration::from_mins(1);
const SOON: Duration = Duration::from_secs(30);
const SLOW: &str = "[latency]\nmode = \"fixed\"\nms = 40\n";
const BATCHES: usize = 40;

/// Two batches are being worked on, fourteen wait in the queues, the rest is pending.
async fn midway() -> (Scripted<'static>, RunId) {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "2");
    scripted.stack.set("TIDEGATE_WORKER__LOOK_AHEAD", "0");
    scripted.start_worker("a").await.unwrap();
    let lines = (0..BATCHES)
        .map(|n| harness::api::line(&format!("key-{n}"), &n.into()))
        .collect();
    let run = scripted.stack.api.submit(PIPELINE, lines).await.unwrap();
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();
    wait::until("the window to be out", SOON, async || {
        let run = scripted.stack.api.run(run.run).await?;
        Ok((run.batches.out == 16).then_some(()))
    })
    .await
    .unwrap();
    (scripted, run.run)
}

fn work_queues() -> [String; 2] {
    [0, 1].map(|lane| format!("tidegate.work.{PIPELINE}.{lane}"))
}

async fn heals(scripted: &mut Scripted<'_>, run: RunId) {
    let ended = scripted
        .stack
        .api
        .wait_until_ended(run, HEALED)
        .await
        .unwrap();
    assert_eq!(
        (ended.batches.completed, ended.retries),
        (BATCHES as u64, 0),
        "{ended:?}"
    );
    let lost = scripted.stack.api.metric("tidegate_lost_total").await;
    assert!(lost.unwrap().unwrap() >= 1.0);
    let sink = scripted.stack.sink().await.unwrap();
    for counted in ["count(*)", "count(distinct batch)"] {
        let rows = sink
            .number(&format!("select {counted} from results"))
            .await
            .unwrap();
        assert_eq!(rows, BATCHES as u64, "{counted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_queue_costs_no_batch() {
    let (mut scripted, run) = midway().await;
    for queue in work_queues() {
        scripted.stack.vhost().purge_queue(&queue).unwrap();
    }
    scripted.let_go("a").unwrap();
    heals(&mut scripted, run).await;
    assert_eq!(
        scripted.starts().unwrap().len(),
        BATCHES,
        "nothing ran twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_costs_no_batch() {
    let (mut scripted, run) = midway().await;
    for queue in work_queues() {
        scripted.stack.vhost().delete_queue(&queue).unwrap();
    }
    scripted.let_go("a").unwrap();
    heals(&mut scripted, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_from_a_backup_goes_on_and_nothing_takes_effect_twice() {
    let (mut scripted, run) = midway().await;
    let folder = scripted.stack.scratch().path().join("data");
    let [ledger, backup] = ["ledger.db", "backup.db"].map(|name| folder.join(name));
    let command = format!(".backup '{}'", backup.display());
    let sqlite = Command::new("sqlite3").arg(&ledger).arg(command).status();
    assert!(sqlite.unwrap().success());
    scripted.let_go("a").unwrap();
    let ended = scripted.stack.api.wait_until_ended(run, SOON).await;
    assert_eq!(ended.unwrap().batches.completed, BATCHES as u64);

    scripted.stack.coordinator().kill().unwrap();
    for rest in ["ledger.db-wal", "ledger.db-shm"] {
        fs::remove_file(folder.join(rest)).unwrap();
    }
    fs::rename(backup, ledger).unwrap();
    scripted.stack.start_coordinator().await.unwrap();
    let again = scripted.stack.api.run(run).await.unwrap();
    assert_eq!(again.batches.completed, 0, "{again:?}");
    heals(&mut scripted, run).await;
    // What was out then is asked after before it runs again, what was pending is not.
    let again = scripted.starts().unwrap().len() - BATCHES;
    assert_eq!(again, BATCHES - 16);
}

/// Nobody here may declare it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_stays_missing_keeps_no_other_pipeline_from_being_healed() {
    let (mut scripted, run) = midway().await;
    scripted.stack.set("TIDEGATE_BROKER__TOPOLOGY", "check");
    scripted.stack.coordinator().kill().unwrap();
    scripted.stack.start_coordinator().await.unwrap();
    let vhost = scripted.stack.vhost();
    vhost.delete_queue("tidegate.work.gsc.slice.0").unwrap();
    for queue in work_queues() {
        vhost.purge_queue(&queue).unwrap();
    }
    scripted.let_go("a").unwrap();
    heals(&mut scripted, run).await;
}

/// Longer than it takes to call a batch lost.
const LONG: Duration = Duration::from_secs(50);

/// Two batches are all that there is, and a worker has them.
async fn held(broker: &RabbitMq) -> (Scripted<'_>, RunId) {
    let mut scripted = Scripted::start(broker, "").await.unwrap();
    scripted.hold("a").unwrap();
    scripted.start_worker("a").await.unwrap();
    let lines = (0..2)
        .map(|n| harness::api::line(&format!("key-{n}"), &n.into()))
        .collect();
    let run = scripted.stack.api.submit(PIPELINE, lines).await.unwrap();
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();
    (scripted, run.run)
}

async fn nothing_was_lost(scripted: &Scripted<'_>, run: RunId) {
    scripted.let_go("a").unwrap();
    let ended = scripted
        .stack
        .api
        .wait_until_ended(run, HEALED)
        .await
        .unwrap();
    assert_eq!(ended.batches.completed, 2, "{ended:?}");
    let lost = scripted.stack.api.metric("tidegate_lost_total").await;
    assert_eq!(lost.unwrap(), None);
    assert_eq!(scripted.starts().unwrap().len(), 2, "nothing ran twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_has_is_not_lost() {
    let (scripted, run) = held(broker()).await;
    tokio::time::sleep(LONG).await;
    nothing_was_lost(&scripted, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_broker_loses_nothing_and_submissions_are_refused() {
    let broker = RabbitMq::start().unwrap();
    let (scripted, run) = held(&broker).await;
    let api = &scripted.stack.api;
    let blocked = async |expected: bool| {
        let shown = async || Ok((api.levels().await?.broker_blocked == expected).then_some(()));
        let what = "the levels to show whether the broker blocks";
        wait::until(what, 2 * SOON, shown).await.unwrap();
    };
    blocked(false).await;
    let watermark = |value: &str| broker.rabbitmqctl(["set_vm_memory_high_watermark", value]);
    watermark("0").unwrap();
    blocked(true).await;
    let line = harness::api::line("key", &3.into());
    let refused = api.submit_raw(PIPELINE, line.clone()).await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"), "{refused:?}");
    // No worker can say what it has.
    tokio::time::sleep(LONG).await;
    watermark("0.4").unwrap();
    blocked(false).await;
    tokio::time::sleep(LONG / 2).await;
    nothing_was_lost(&scripted, run).await;
    api.submit(PIPELINE, line).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_its_disk_costs_no_batch() {
    let broker = RabbitMq::start().unwrap();
    let sync = Sync::start(&broker, Database::Sqlite, SLOW, 4, &["a", "b"])
        .await
        .unwrap();
    let command = sync.begin(&READABLE).unwrap();
    sync.wait_until_midway(40).await.unwrap();
    broker.kill().unwrap();
    broker.wipe().unwrap();
    broker.start_again().unwrap();
    sync.stack.vhost().create_again().unwrap();
    let back = Instant::now();
    finished(&command.await.unwrap().unwrap()).unwrap();
    let healed = back.elapsed();
    assert!(healed <= HEALED, "healed after {healed:?}");
    sync.assert_truth(&READABLE).await.unwrap();
}
