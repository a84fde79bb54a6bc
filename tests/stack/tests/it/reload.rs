//! SIGHUP changes what can change while batches run, and says what cannot.

use std::fs;
use std::time::Duration;

use harness::api::line;
use harness::rabbitmq::shared as broker;
use harness::wait;
use nix::sys::signal::Signal;
use scenario::script::{PIPELINE, Scripted};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_gets_more_slots_without_a_restart() {
    let mut scripted = Scripted::start(broker(), "").await.unwrap();
    let file = scripted.stack.scratch().path().join("tidegate.toml");
    let pipelines = fs::read_to_string(&file).unwrap();
    let configure = |worker: &str| fs::write(&file, format!("{pipelines}\n{worker}\n")).unwrap();
    configure("[worker]\nslots = 1");
    scripted.hold("a").unwrap();
    scripted.start_worker("a").await.unwrap();
    let lines = (0..8).map(|n| line(&format!("key-{n}"), &n.into()));
    let run = scripted.stack.api.submit(PIPELINE, lines.collect()).await;
    let run = run.unwrap();
    scripted.wait_for_starts("a", 1, SOON).await.unwrap();

    configure("[worker]\nslots = 0");
    let worker = scripted.stack.worker("a");
    worker.signal(Signal::SIGHUP).unwrap();
    worker.wait_for_line("the old one stays", SOON).unwrap();
    assert_eq!(scripted.starts().unwrap().len(), 1);

    configure("[worker]\nslots = 3\ndrain_timeout = \"7s\"");
    let worker = scripted.stack.worker("a");
    worker.signal(Signal::SIGHUP).unwrap();
    let said = worker.wait_for_line("need a restart", SOON).unwrap();
    assert!(said.contains("sections=worker"), "{said}");
    scripted.wait_for_starts("a", 3, SOON).await.unwrap();
    wait::until("the coordinator to know it", SOON, async || {
        let workers = scripted.stack.api.workers().await?;
        let [worker] = workers.as_slice() else {
            return Ok(None);
        };
        assert!(worker.memory_bytes.is_some_and(|bytes| bytes > 1 << 20));
        Ok((worker.slots == 3).then_some(()))
    })
    .await
    .unwrap();
    scripted.let_go("a").unwrap();
    let ended = scripted.stack.api.wait_until_ended(run.run, SOON).await;
    assert_eq!(ended.unwrap().batches.completed, 8);
}
