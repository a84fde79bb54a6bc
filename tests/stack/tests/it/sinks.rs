//! Pipelines with sinks of their own, from the config to the rows, and bad rows among good ones.

use std::time::Duration;

use harness::api::line;
use harness::postgres;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use scenario::outage::lines_below;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_mins(2);

/// A batch's one row is its payload.
fn config(sink: &str) -> String {
    format!(
        "[pipelines.echo]\ncommand = [\"cat\"]\nsink = \"visits\"\nmax_attempts = 1\n[sinks.visits]\n{sink}"
    )
}

async fn start(config: &str) -> Stack<'static> {
    let mut stack = Stack::new(broker(), config).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "echo");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    stack
}

fn submission(payloads: &[Value]) -> String {
    payloads
        .iter()
        .map(|payload| line("key", payload))
        .collect()
}

/// One batch of each kind that does not fit, between many that do: rows come in groups, and only the guilty fail.
async fn only_the_guilty_fail(url: Option<String>) {
    let table = "table = \"visits\"\ncolumns = [\"word text\", \"n bigint\"]\n";
    let url_line = url.as_ref().map(|url| format!("url = \"{url}\"\n"));
    let mut stack = start(&config(&format!("{table}{}", url_line.unwrap_or_default()))).await;
    if let Some(url) = url {
        stack.set("TIDEGATE_SINK__URL", url);
    }
    let mut payloads: Vec<Value> = (0..200)
        .map(|n| json!({ "word": format!("w{n}"), "n": n }))
        .collect();
    payloads[50] = json!({ "word": "bad", "n": "fifty" });
    payloads[120] = json!({ "word": "bad" });
    payloads[121] = json!({ "word": "bad", "n": 1, "more": true });
    let run = stack
        .api
        .submit("echo", submission(&payloads))
        .await
        .unwrap();
    let run = stack.api.wait_until_ended(run.run, LIMIT).await.unwrap();
    assert_eq!(
        (run.batches.completed, run.batches.dead),
        (197, 3),
        "{run:?}"
    );
    let dead = stack.api.dead(run.run).await.unwrap();
    for expected in [
        "line 1 of the output does not fit the sink: column \"n\" is text, not bigint",
        "line 1 of the output does not fit the sink: column \"n\" is missing",
        "line 1 of the output does not fit the sink: has a field \"more\"",
    ] {
        let found = dead
            .iter()
            .find(|dead| dead.reason == "bad_row" && dead.error.contains(expected));
        assert!(found.is_some(), "{expected}: {dead:?}");
    }
    let sink = stack.sink().await.unwrap();
    let words = sink.texts("select word from visits").await.unwrap();
    assert_eq!(words.len(), 197);
    assert!(!words.contains(&"bad".to_owned()));
    let markers = sink.number("select count(*) from batch_commits").await;
    assert_eq!(markers.unwrap(), 197);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_batches_that_do_not_fit_an_sqlite_table_fail() {
    only_the_guilty_fail(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_batches_that_do_not_fit_a_postgres_table_fail() {
    only_the_guilty_fail(Some(postgres::shared().new_database().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_table_itself_refuses_fails_its_batch_alone() {
    let postgres = postgres::shared();
    let url = postgres.new_database().unwrap();
    let database = url.rsplit('/').next().unwrap();
    let table = "create table visits (word text not null primary key, n bigint not null)";
    postgres.psql(database, table).unwrap();
    let columns = "columns = [\"word text\", \"n bigint\"]";
    // They wait for each other, so that the two of one word are in one group.
    let sink =
        format!("url = \"{url}\"\ntable = \"visits\"\n{columns}\nsize = 20\ntimeout = \"1s\"");
    let stack = start(&config(&sink)).await;
    let mut payloads: Vec<Value> = (0..40)
        .map(|n| json!({ "word": format!("w{n}"), "n": n }))
        .collect();
    payloads[10] = json!({ "word": "w3", "n": 10 });
    let run = stack
        .api
        .submit("echo", submission(&payloads))
        .await
        .unwrap();
    let run = stack.api.wait_until_ended(run.run, LIMIT).await.unwrap();
    assert_eq!(
        (run.batches.completed, run.batches.dead),
        (39, 1),
        "{run:?}"
    );
    let dead = stack.api.dead(run.run).await.unwrap();
    assert_eq!(dead[0].reason, "sink_refused", "{dead:?}");
    let count = "select count(*) from visits";
    assert_eq!(postgres.psql(database, count).unwrap().trim(), "39");
}

/// Groups that wait for company become files of many batches; a drain waits for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn files_hold_groups_of_batches_and_a_drain_writes_what_waits() {
    let mut stack = start(&config("kind = \"ndjson\"\nsize = 10\ntimeout = \"1m\"")).await;
    let payloads: Vec<Value> = (0..25).map(|n| json!({ "n": n })).collect();
    let run = stack
        .api
        .submit("echo", submission(&payloads))
        .await
        .unwrap();
    let full = |run: &coordinator::run::Run| run.batches.completed == 20;
    let what = "two groups to be full";
    stack
        .api
        .wait_for_run(run.run, what, LIMIT, full)
        .await
        .unwrap();
    let folder = stack.scratch().path().join("data/visits");
    let files = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().count() - 1;
    assert_eq!(
        (files(&folder), lines_below(&folder).unwrap().len()),
        (2, 20)
    );

    let ended = stack
        .worker("a")
        .terminate(Duration::from_secs(20))
        .unwrap();
    assert!(ended.success(), "{ended}");
    let run = stack.api.wait_until_ended(run.run, LIMIT).await.unwrap();
    assert_eq!((run.batches.completed, run.retries), (25, 0), "{run:?}");
    assert_eq!(
        (files(&folder), lines_below(&folder).unwrap().len()),
        (3, 25)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_cannot_be_filled_is_refused_at_the_start() {
    let config = config("kind = \"ndjson\"\nsize = 500\ntimeout = \"1s\"");
    let mut stack = Stack::new(broker(), &config).unwrap();
    let worker = stack.spawn_worker("a").unwrap();
    assert_eq!(worker.exit_code(LIMIT).unwrap(), 78);
    let output = worker.output().unwrap();
    assert!(
        output.contains("sinks.visits.size") && output.contains("500 > worker.slots"),
        "{output}"
    );
}

/// The sink stands still while handlers go on: what they have is bounded by bytes, not by batches.
#[tokio::test(flavor = "multi_thread")]
async fn results_that_wait_for_the_sink_are_bounded_by_bytes() {
    const BATCHES: usize = 80;
    const MEBIBYTES_EACH: usize = 2;
    const STANDSTILL: u32 = 10;
    let postgres = postgres::shared();
    let url = postgres.new_database().unwrap();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let config = format!(
        "[pipelines.echo]\ncommand = [\"cat\", \"rows.ndjson\"]\nsink = \"visits\"\n[sinks.visits]\nurl = \"{url}\"\n\
         table = \"visits\"\ncolumns = [\"word text\"]\nbytes = \"8MiB\"\n"
    );
    let mut stack = Stack::new(broker(), &config).unwrap();
    let row = json!({ "word": "x".repeat(1_000) });
    let rows = format!("{row}\n").repeat(MEBIBYTES_EACH * 1_024);
    std::fs::write(stack.scratch().path().join("rows.ndjson"), rows).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", "echo");
    stack.set("TIDEGATE_WORKER__SLOTS", "2");
    stack.set("TIDEGATE_WORKER__LOOK_AHEAD", "200");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let lock = format!(
        "begin; lock table batch_commits in exclusive mode; select pg_sleep({STANDSTILL}); commit"
    );
    let locking = tokio::task::spawn_blocking(move || postgres.psql(&database, &lock));
    let payloads = vec![json!(1); BATCHES];
    let run = stack
        .api
        .submit("echo", submission(&payloads))
        .await
        .unwrap();
    locking.await.unwrap().unwrap();
    let peak = stack.worker("a").memory().unwrap().peak >> 20;
    assert!(peak < 110, "{peak} MiB while nothing was stored");
    let run = stack.api.wait_until_ended(run.run, LIMIT).await.unwrap();
    assert_eq!(run.batches.completed, BATCHES as u64, "{run:?}");
    assert_eq!(run.rows, (BATCHES * MEBIBYTES_EACH * 1_024) as u64);
}
