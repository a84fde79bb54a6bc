//! A process dies at each step of a batch's life, before and after each side effect. Whatever the step: every
//! batch is accounted for at every moment, and in the end the sink holds each result exactly once.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use coordinator::run::Run;
use harness::api::line;
use harness::postgres;
use harness::processes::Service;
use harness::rabbitmq::shared as broker;
use harness::stack::Stack;
use harness::wait;
use nix::sys::signal::Signal;
use scenario::outage::lines_below;
use serde_json::{Value, json};

const BATCHES: usize = 300;
const PIPELINE: &str = "echo";
/// A batch's one row is its payload.
const ECHO: &str = "[pipelines.echo]\nhandler = \"exec\"\ncommand = [\"cat\"]\n";
const LIMIT: Duration = Duration::from_mins(2);

/// Somewhere in the middle of a run, for points that are reached once for each group of batches, and for
/// those that are reached once for each batch.
const THIRD_GROUP: &str = "2*off->abort";
const HUNDREDTH_BATCH: &str = "99*off->abort";

/// Where the part that dies keeps what it knows.
#[derive(Clone, Copy, PartialEq)]
enum Store {
    Sqlite,
    Postgres,
    Files,
}

/// The same deaths with one store, or with each of the two databases.
macro_rules! deaths {
    ($who:ident with $store:ident in $module:ident $($test:ident at $point:literal, $when:expr, $trace:expr;)*) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    $who(Store::$store, $point, $when, $trace).await;
                }
            )*
        }
    };
    ($who:ident in $sqlite:ident and $postgres:ident: $($deaths:tt)*) => {
        deaths! { $who with Sqlite in $sqlite $($deaths)* }
        deaths! { $who with Postgres in $postgres $($deaths)* }
    };
}

/// What a death at a point must leave behind, to prove that it happened where it should.
#[derive(Clone, Copy, PartialEq)]
enum Trace {
    /// Outcomes that were settled before arrive again.
    Duplicates,
    /// The client gets no answer.
    NoAnswer,
    /// Nothing that must always be there.
    Nothing,
}

deaths! { coordinator_dies in the_coordinator_dies_when and the_coordinator_with_postgres_dies_when:
    lines_are_parsed at "c.submit.parsed", "abort", Trace::NoAnswer;
    a_run_is_about_to_be_accepted at "c.ledger.before_commit", "abort", Trace::NoAnswer;
    a_run_is_accepted at "c.ledger.committed", "abort", Trace::NoAnswer;
    batches_are_read at "c.publish.read", THIRD_GROUP, Trace::Nothing;
    batches_are_sent at "c.publish.sent", THIRD_GROUP, Trace::Nothing;
    batches_are_confirmed at "c.confirm.received", THIRD_GROUP, Trace::Nothing;
    batches_are_recorded_as_out at "c.published.committed", THIRD_GROUP, Trace::Nothing;
    outcomes_arrive at "c.outcome.received", THIRD_GROUP, Trace::Nothing;
    outcomes_are_settled at "c.outcome.committed", THIRD_GROUP, Trace::Duplicates;
    outcomes_are_acked at "c.outcome.acked", THIRD_GROUP, Trace::Nothing;
}

deaths! { coordinator_dies_alone in the_coordinator_dies_alone_when and the_coordinator_with_postgres_dies_alone_when:
    batches_are_sent at "c.publish.sent", "abort", Trace::Duplicates;
    batches_are_confirmed at "c.confirm.received", "abort", Trace::Duplicates;
}

deaths! { worker_dies with Sqlite in a_worker_dies_when
    a_batch_arrives at "w.delivered", HUNDREDTH_BATCH, Trace::Nothing;
    a_handler_has_ended at "w.handler.done", HUNDREDTH_BATCH, Trace::Nothing;
    outcomes_are_sent at "w.outcome.sent", THIRD_GROUP, Trace::Nothing;
    an_outcome_is_confirmed at "w.outcome.confirmed", HUNDREDTH_BATCH, Trace::Duplicates;
}

deaths! { worker_dies in a_worker_dies_at_its_sink_when and a_worker_with_postgres_dies_when:
    results_are_about_to_be_committed at "w.sink.before_commit", THIRD_GROUP, Trace::Nothing;
    results_are_committed at "w.sink.committed", THIRD_GROUP, Trace::Nothing;
}

deaths! { worker_dies with Files in a_worker_with_files_dies_when
    a_file_is_about_to_be_committed at "w.sink.before_commit", THIRD_GROUP, Trace::Nothing;
    a_file_is_committed_and_not_seen_yet at "w.sink.committed", THIRD_GROUP, Trace::Nothing;
}

async fn coordinator_dies(ledger: Store, point: &str, when: &str, trace: Trace) {
    let mut stack = echo("TIDEGATE_LEDGER__URL", ledger);
    start_doomed_coordinator(&mut stack, point, when).await;
    stack.start_worker("a").await.unwrap();

    let answer = submit(&stack).await;
    assert_eq!(answer.is_err(), trace == Trace::NoAnswer, "{answer:?}");
    assert_aborted(stack.coordinator());
    end_lease(&stack);
    stack.start_coordinator().await.unwrap();

    // The client, which may have no answer, asks again.
    let run = submit(&stack).await.unwrap();
    if let Ok(before) = answer {
        assert_eq!(run.run, before.run, "one key, one run");
    }
    assert_all_is_well(&stack, run, trace).await;
}

/// Nobody works off what is in the queue before it is published a second time.
async fn coordinator_dies_alone(ledger: Store, point: &str, when: &str, trace: Trace) {
    let mut stack = echo("TIDEGATE_LEDGER__URL", ledger);
    start_doomed_coordinator(&mut stack, point, when).await;
    let run = submit(&stack).await.unwrap();
    assert_aborted(stack.coordinator());
    end_lease(&stack);
    stack.start_coordinator().await.unwrap();
    let published = async || stack.api.metric("tidegate_published_total").await;
    wait::until("batches to be published again", LIMIT, async || {
        Ok((published().await? > Some(0.0)).then_some(()))
    })
    .await
    .unwrap();
    stack.start_worker("a").await.unwrap();
    assert_all_is_well(&stack, run, trace).await;
}

async fn worker_dies(sink: Store, point: &str, when: &str, trace: Trace) {
    let mut stack = echo("TIDEGATE_SINK__URL", sink);
    stack.start_coordinator().await.unwrap();
    stack.set("FAILPOINTS", format!("{point}={when}"));
    stack.start_worker("doomed").await.unwrap();
    stack.environment.remove("FAILPOINTS");

    let run = submit(&stack).await.unwrap();
    assert_aborted(stack.worker("doomed"));
    stack.start_worker("next").await.unwrap();
    assert_all_is_well(&stack, run, trace).await;
}

async fn start_doomed_coordinator(stack: &mut Stack<'_>, point: &str, when: &str) {
    stack.set("FAILPOINTS", format!("{point}={when}"));
    stack.start_coordinator().await.unwrap();
    stack.environment.remove("FAILPOINTS");
}

/// A successor need not wait for it: `ledger.rs` has one that does.
fn end_lease(stack: &Stack<'_>) {
    if let Some(ledger) = stack.environment.get("TIDEGATE_LEDGER__URL") {
        let database = ledger.rsplit('/').next().unwrap();
        let ending = "update lanes set until = '-infinity'";
        postgres::shared().psql(database, ending).unwrap();
    }
}

fn assert_aborted(service: &mut Service) {
    let ended = service.wait(LIMIT).unwrap();
    assert_eq!(ended.signal(), Some(Signal::SIGABRT as i32), "{ended}");
}

/// With this store behind the variable that names one; the default is SQLite.
fn echo(variable: &str, store: Store) -> Stack<'static> {
    let config = match store {
        Store::Files => format!("{ECHO}sink = \"files\"\n[sinks.files]\nkind = \"ndjson\"\n"),
        Store::Sqlite | Store::Postgres => ECHO.to_owned(),
    };
    let mut stack = Stack::new(broker(), &config).unwrap();
    stack.set("TIDEGATE_WORKER__PIPELINES", PIPELINE);
    if store == Store::Postgres {
        stack.set(variable, postgres::shared().new_database().unwrap());
    }
    stack
}

fn payload(number: usize) -> Value {
    json!({ "number": number })
}

async fn submit(stack: &Stack<'_>) -> anyhow::Result<Run> {
    let lines = (0..BATCHES).map(|n| line(&format!("key-{}", n % 7), &payload(n)));
    stack
        .api
        .submit_once(PIPELINE, "once", lines.collect())
        .await
}

async fn assert_all_is_well(stack: &Stack<'_>, run: Run, trace: Trace) {
    let ended = wait::until("the run to end", LIMIT, async || {
        let now = stack.api.run(run.run).await?;
        assert_conservation(&now);
        Ok((now.batches.finished() == now.batches.accepted).then_some(now))
    });
    let ended = ended.await.unwrap();
    assert_eq!(ended.batches.completed, BATCHES as u64, "{ended:?}");
    assert_eq!(ended.retries, 0, "a crash costs no attempt: {ended:?}");

    let sink = stack.sink().await.unwrap();
    let mut stored: BTreeMap<String, usize> = BTreeMap::new();
    let files = stack.scratch().path().join("data/files");
    let rows = if files.is_dir() {
        lines_below(&files)
    } else {
        sink.texts("select cast(json as text) from results").await
    };
    for row in rows.unwrap() {
        *stored.entry(row).or_default() += 1;
    }
    let expected = (0..BATCHES).map(|n| (payload(n).to_string(), 1)).collect();
    assert_eq!(stored, expected, "each result once");
    let markers = sink.number("select count(*) from batch_commits").await;
    assert_eq!(markers.unwrap(), BATCHES as u64);

    wait::until("the queues to be empty", LIMIT, async || {
        let depths = stack.vhost().queue_depths()?;
        Ok(depths
            .values()
            .all(|depth| depth.total() == 0)
            .then_some(()))
    })
    .await
    .unwrap();
    let duplicates = stack
        .api
        .metric_with("tidegate_settled_total", &["effect=\"duplicate\""])
        .await
        .unwrap();
    if trace == Trace::Duplicates {
        assert!(
            duplicates > Some(0.0),
            "the death left no trace: {duplicates:?}"
        );
    }
}

fn assert_conservation(run: &Run) {
    let batches = &run.batches;
    let sum = batches.pending + batches.out + batches.finished();
    assert_eq!(batches.accepted, sum, "{run:?}");
}
