//! The ledger in PostgreSQL: a run goes through it, and a coordinator that dies has a successor.

use std::time::Duration;

use harness::api::line;
use harness::postgres;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use nix::sys::signal::Signal;

const BATCHES: u32 = 300;
const SOON: Duration = Duration::from_secs(30);
const PIPELINE: &str = "nothing";
const PIPELINES: &str = "[pipelines.nothing]\nhandler = \"noop\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_postgres_outlives_its_coordinator() {
    let mut stack = Stack::new(broker(), PIPELINES).unwrap();
    let database = postgres::shared().new_database().unwrap();
    stack.set("TIDEGATE_LEDGER__URL", database);
    stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
    stack.start_coordinator().await.unwrap();
    let lines = (0..BATCHES).map(|n| line(&format!("key-{}", n % 7), &n.into()));
    let run = stack.api.submit(PIPELINE, lines.collect()).await.unwrap();

    // Killed, it gives nothing back: its successor waits for the lease.
    stack.coordinator().kill().unwrap();
    stack.start_coordinator().await.unwrap();
    assert_eq!(stack.api.run(run.run).await.unwrap().batches.accepted, 300);
    stack.start_worker("a").await.unwrap();
    let ended = stack.api.wait_until_ended(run.run, SOON).await.unwrap();
    assert_eq!(ended.batches.completed, 300, "{ended:?}");

    // Asked to stop, it does.
    stack.coordinator().signal(Signal::SIGTERM).unwrap();
    assert_eq!(stack.coordinator().exit_code(SOON).unwrap(), 0);
    stack.start_coordinator().await.unwrap();
    assert_eq!(stack.api.run(run.run).await.unwrap(), ended);
}
