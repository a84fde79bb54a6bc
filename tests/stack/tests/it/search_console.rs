//! The main job ends with exactly the emulator's rows.

use harness::rabbitmq::shared as broker;
use harness::wait;
use scenario::search_console::{
    Database, FORBIDDEN, MIXED_FAULTS, READABLE, REWRITTEN, SYNC_LIMIT, Sync,
};

const DAYS: u32 = 4;

async fn rows_equal_truth(database: Database, faults: &str) {
    let sync = Sync::start(broker(), database, faults, DAYS, &["a", "b"])
        .await
        .unwrap();
    let run = sync.run().await.unwrap();
    sync.assert_truth(&READABLE).await.unwrap();
    let stored = sync.stack.sink().await.unwrap();
    let stored = stored
        .number("select cast(sum(rows) as bigint) from search_analytics_slices")
        .await
        .unwrap();
    assert_eq!(run.rows, stored, "the run says how many rows there are");
    assert!(run.statistics["api_calls"] > 0, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_equal_truth_in_sqlite() {
    rows_equal_truth(Database::Sqlite, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_equal_truth_in_postgres() {
    rows_equal_truth(Database::Postgres, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_equal_truth_in_sqlite_despite_faults() {
    rows_equal_truth(Database::Sqlite, MIXED_FAULTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_equal_truth_in_postgres_despite_faults() {
    rows_equal_truth(Database::Postgres, MIXED_FAULTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sync_writes_only_what_google_revised() {
    let mut sync = Sync::start(broker(), Database::Sqlite, "", DAYS, &["a"])
        .await
        .unwrap();
    sync.run().await.unwrap();
    let again = sync.run().await.unwrap();
    assert_eq!(
        again
            .statistics
            .get("rows_written")
            .copied()
            .unwrap_or_default(),
        0,
        "{again:?}"
    );
    let sink = sync.stack.sink().await.unwrap();
    assert_eq!(sink.number(REWRITTEN).await.unwrap(), 0);

    // Five days later the old days have been revised: rows have changed, others have vanished.
    sync.advance(5, &["a"]).await.unwrap();
    let outdated = sync.compare(&READABLE, 5).await.unwrap();
    assert!(
        !outdated.mismatches.is_empty(),
        "the emulator revised nothing"
    );
    sync.days += 5;
    sync.run().await.unwrap();
    sync.assert_truth(&READABLE).await.unwrap();
    assert!(
        sink.number(REWRITTEN).await.unwrap() > 0,
        "some slices were written again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_and_a_limited_property_do_not_hold_up_the_others() {
    let [good, limited] = READABLE;
    // What Google's load quota refuses: sets by page or query, while the cheap ones still work.
    let heavy = [
        &["page"][..],
        &["query"],
        &["page", "query", "country", "device"],
    ];
    let faults = heavy.map(|dims| {
        format!("[[faults]]\nkind = \"403load\"\nsite = \"{limited}\"\ndims = {dims:?}\n")
    });
    let faults = faults.concat();
    let sync = Sync::start(broker(), Database::Sqlite, &faults, DAYS, &["a"])
        .await
        .unwrap();
    // The limited property waits for a new quota day, so the command does not end by itself.
    let command = sync.begin(&[good, limited, FORBIDDEN]).unwrap();
    wait::until("the good property to be complete", SYNC_LIMIT, async || {
        let many = sync
            .stack
            .api
            .runs()
            .await?
            .iter()
            .any(|run| run.batches.completed > 50);
        Ok((many && sync.compare(&[good], 0).await?.is_good()).then_some(()))
    })
    .await
    .unwrap();
    command.abort();

    let sink = sync.stack.sink().await.unwrap();
    let states = sink.properties().await.unwrap();
    assert_eq!(states[good].state, "active");
    assert_eq!(states[limited].state, "quota_limited");
    assert!(
        states[limited].detail.as_ref().unwrap().contains("quota"),
        "{states:?}"
    );
    assert_eq!(states[FORBIDDEN].state, "permission_lost");
    let run = &sync.stack.api.runs().await.unwrap()[0];
    let dead = sync.stack.api.dead(run.run).await.unwrap();
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].reason, "permission_lost");
    assert!(dead[0].error.contains("not verified"), "{dead:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_property_is_dead_and_the_known_ones_are_named() {
    let sync = Sync::start(broker(), Database::Sqlite, "", DAYS, &["a"])
        .await
        .unwrap();
    let answer = sync
        .begin(&["sc-domain:alpa.example"])
        .unwrap()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.code, 1, "{answer:?}");
    let run = &sync.stack.api.runs().await.unwrap()[0];
    let dead = sync.stack.api.dead(run.run).await.unwrap();
    assert!(
        dead[0].error.contains("sc-domain:alpha.example"),
        "{dead:?}"
    );
}
