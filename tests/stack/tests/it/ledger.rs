//! The ledger in PostgreSQL: a run goes through it, a coordinator that dies has a successor, and what is not known
//! to be committed is neither lost nor done twice.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::api::line;
use harness::lossy::LossyLink;
use harness::postgres;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use nix::sys::signal::Signal;

const BATCHES: u32 = 300;
const SOON: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_mins(2);
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

/// A batch of the first stage fails once, and asks for one of the second when it is done.
const STAGES: &str = r#"
[pipelines.first]
handler = "exec"
command = ["python3", "-u", "first.py"]
mode = "lines"
retry_base = "10ms"
window_min = 4
window_max = 8

[pipelines.second]
handler = "exec"
command = ["cat"]
window_min = 4
window_max = 8
"#;
const FIRST: &str = r#"
import json, sys
print('{"ready": 1}')
for line in sys.stdin:
    batch = json.loads(line)
    me = {"batch": batch["batch"]}
    if batch["attempt"] == 1:
        print(json.dumps({"retry": me | {"error": "not yet"}}))
        continue
    number = batch["payload"]
    print(json.dumps({"row": {"first": number}}))
    print(json.dumps({"follow_up": {"pipeline": "second", "key": batch["key"], "payload": {"second": number}}}))
    print(json.dumps({"completed": me}))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn commits_whose_answer_is_lost_lose_nothing_and_repeat_nothing() {
    let mut stack = Stack::new(broker(), STAGES).unwrap();
    std::fs::write(stack.scratch().path().join("first.py"), FIRST).unwrap();
    let database = postgres::shared().new_database().unwrap();
    let link = LossyLink::to(&database).await.unwrap();
    stack.set("TIDEGATE_LEDGER__URL", link.url());
    stack.set("TIDEGATE_WORKER__PIPELINES", "first,second");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();

    link.lose_every(3);
    let lines = (0..BATCHES).map(|n| line(&format!("key-{}", n % 7), &n.into()));
    let run = stack.api.submit("first", lines.collect()).await.unwrap();
    let all = u64::from(BATCHES);
    let ended = stack
        .api
        .wait_for_run(run.run, "the run to end", LIMIT, |run| {
            let batches = &run.batches;
            let sum = batches.pending + batches.out + batches.finished();
            assert_eq!(batches.accepted, sum, "{run:?}");
            run.has_ended()
        });
    let ended = ended.await.unwrap();
    assert!(link.lost() > 10, "{} answers were lost", link.lost());
    assert_eq!(
        (ended.batches.accepted, ended.batches.completed),
        (2 * all, 2 * all),
        "{ended:?}"
    );
    assert_eq!((ended.retries, ended.rows), (all, 2 * all), "{ended:?}");
    assert_eq!(stack.api.runs().await.unwrap(), [ended]);

    let sink = stack.sink().await.unwrap();
    let rows = sink.texts("select cast(json as text) from results").await;
    let mut stored: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows.unwrap() {
        *stored.entry(row.replace(' ', "")).or_default() += 1;
    }
    let expected = |n| ["first", "second"].map(|stage| (format!("{{\"{stage}\":{n}}}"), 1));
    assert_eq!(stored, (0..BATCHES).flat_map(expected).collect());
}
