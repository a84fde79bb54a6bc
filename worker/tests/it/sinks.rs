//! The conformance suite of sinks: what every sink has to do. Files run with their markers in SQLite and in PostgreSQL.

mod default;
mod files;
mod tables;

use std::sync::Arc;

use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::{Attempt, Instance};
use shared::outcome::{Completed, Statistics};
use worker::handler::Rows;
use worker::sink::{Committed, Marker, SinkError};

use crate::support::database::Ground;

macro_rules! on {
    ($($name:ident: $kind:ident $form:ident;)* => $tests:tt) => {
        $(on!(@one $name $kind $form $tests);)*
    };
    (@one $name:ident $kind:ident $form:ident {$($test:ident)*}) => {
        mod $name {
            use crate::support::database::{Form, Ground, Kind};
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(Ground::of(Kind::$kind, Form::$form).await).await; })*
        }
    };
}
pub(crate) use on;

on! {
    sqlite: Sqlite Results;
    postgres: Postgres Results;
    sqlite_table: Sqlite Table;
    postgres_table: Postgres Table;
    ndjson: Sqlite Ndjson;
    ndjson_with_markers_in_postgres: Postgres Ndjson;
    parquet: Sqlite Parquet;
    => {
        a_commit_is_found_and_a_repeat_changes_nothing
        the_first_of_two_writers_wins
        many_at_once_are_all_stored_once
        rows_that_no_sink_takes_leave_their_neighbours_alone
        rows_collected_in_the_sinks_form_are_stored
        nothing_to_store_is_a_marker
        a_damaged_marker_is_named
        workers_may_start_together
        a_worker_may_start_after_one_of_the_next_version
    }
}

fn marker(batch: BatchId, attempt: u32) -> Marker {
    let statistics = Statistics::from([("api_calls".to_owned(), 2)]);
    Marker {
        batch,
        attempt: Attempt::new(attempt),
        writer: Instance::from(format!("writer-{attempt}")),
        completed: Completed {
            rows: 7,
            statistics,
            follow_ups: Vec::new(),
        },
        batch_key: None,
    }
}

/// Rows that every sink takes: objects with a `word` and a number `n`.
fn words(words: &[&str]) -> Arc<Rows> {
    let row = |(n, word): (usize, &&str)| format!(r#"{{"word":"{word}","n":{n}}}"#);
    let rows: Vec<String> = words.iter().enumerate().map(row).collect();
    json(&rows.iter().map(String::as_str).collect::<Vec<_>>())
}

fn json(texts: &[&str]) -> Arc<Rows> {
    let row = |text: &&str| RawValue::from_string((*text).to_owned()).unwrap();
    Arc::new(Rows::Json(texts.iter().map(row).collect()))
}

fn count(completed: &Completed, name: &str) -> u64 {
    completed.statistics.get(name).copied().unwrap_or_default()
}

async fn a_commit_is_found_and_a_repeat_changes_nothing(ground: Ground) {
    let batch = BatchId::generate();
    assert_eq!(ground.sink.find(batch).await.unwrap(), None);
    let committed = ground
        .sink
        .commit(marker(batch, 1), words(&["a", "b"]))
        .await
        .unwrap();
    let Committed::Now(completed) = committed else {
        panic!("{committed:?}")
    };
    assert_eq!(
        (
            count(&completed, "rows_written"),
            count(&completed, "api_calls")
        ),
        (2, 2)
    );
    assert_eq!(
        ground.sink.find(batch).await.unwrap(),
        Some(completed.clone())
    );
    let again = ground
        .sink
        .commit(marker(batch, 2), words(&["c", "d", "e"]))
        .await
        .unwrap();
    assert_eq!(again, Committed::Before(completed));
    let stored = [("a".to_owned(), 0), ("b".to_owned(), 1)];
    assert_eq!(ground.words().await, stored);
    assert_eq!(
        ground.rows("attempt, writer", "FROM batch_commits").await,
        ["1\twriter-1"]
    );
}

async fn race(ground: &Ground, rows: impl Fn() -> Arc<Rows>) {
    let other = ground.another().await;
    for _ in 0..10 {
        let batch = BatchId::generate();
        let (a, b) = tokio::join!(
            ground.sink.commit(marker(batch, 1), rows()),
            other.commit(marker(batch, 2), rows()),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        let winners = [&a, &b]
            .into_iter()
            .filter(|c| matches!(c, Committed::Now(_)))
            .count();
        assert_eq!(winners, 1, "{a:?} {b:?}");
        assert_eq!(a.into_completed(), b.into_completed());
    }
}

async fn the_first_of_two_writers_wins(ground: Ground) {
    race(&ground, || words(&["a", "b"])).await;
    assert_eq!(ground.words().await.len(), 20);
}

async fn many_at_once_are_all_stored_once(ground: Ground) {
    let ground = Arc::new(ground);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..300 {
        let batch = BatchId::generate();
        // Twice, as after a redelivery.
        for attempt in [1, 2] {
            let ground = Arc::clone(&ground);
            tasks.spawn(async move {
                let rows = words(&[&format!("{number:03}")]);
                ground
                    .sink
                    .commit(marker(batch, attempt), rows)
                    .await
                    .unwrap()
            });
        }
    }
    let committed = tasks.join_all().await;
    let now = committed.iter().filter(|c| matches!(c, Committed::Now(_)));
    assert_eq!(now.count(), 300);
    let expected: Vec<(String, i64)> = (0..300).map(|n| (format!("{n:03}"), 0)).collect();
    assert_eq!(ground.words().await, expected);
}

/// What is refused of 50 batches that are committed at once.
async fn refused_of_50(ground: &Ground, rows: impl Fn(usize) -> Arc<Rows>) -> Vec<SinkError> {
    let commits = (0..50).map(|n| ground.sink.commit(marker(BatchId::generate(), 1), rows(n)));
    let committed = futures::future::join_all(commits).await;
    committed.into_iter().filter_map(Result::err).collect()
}

async fn rows_that_no_sink_takes_leave_their_neighbours_alone(ground: Ground) {
    let refused = refused_of_50(&ground, |n| match n {
        20 => json(&[r#"{"word":"a\u0000b","n":1}"#]),
        _ => words(&["fine"]),
    })
    .await;
    assert!(matches!(refused[..], [SinkError::Unfit(_)]), "{refused:?}");
    assert!(refused[0].to_string().contains("NUL"), "{refused:?}");
    assert_eq!(ground.words().await.len(), 49);
    assert_eq!(ground.rows("count(*)", "FROM batch_commits").await, ["49"]);
}

/// As a command's output is: what the sink would refuse is refused row by row.
async fn rows_collected_in_the_sinks_form_are_stored(ground: Ground) {
    let mut collector = ground.sink.form().collector();
    collector.push(r#"{"word":"a","n":0}"#).unwrap();
    collector.push(r#" {"n": 1, "word": "b"} "#).unwrap();
    for (bad, reason) in [
        (r#"{"word":"half"#, "bad_output"),
        (r#"{"word":"two","n":1} 2"#, "bad_output"),
        (r#"{"word":"a\ud800","n":1}"#, "bad_output"),
        (r#"{"word":"a\u0000","n":1}"#, "bad_output"),
        (r#"{"word":"deep","n":1,"doc":DEEP}"#, "bad_output"),
    ] {
        let bad = bad.replace("DEEP", &("[".repeat(101) + &"]".repeat(101)));
        let refused = collector.push(&bad).unwrap_err();
        assert_eq!(refused.reason(), reason, "{bad}: {refused}");
    }
    assert_eq!(collector.count(), 2);
    let rows = Arc::new(collector.finish());
    assert_eq!(rows.count(), 2);
    let batch = BatchId::generate();
    let committed = ground
        .sink
        .commit(marker(batch, 1), Arc::clone(&rows))
        .await;
    assert!(matches!(committed, Ok(Committed::Now(_))), "{committed:?}");
    let again = ground.sink.commit(marker(batch, 2), rows).await;
    assert!(matches!(again, Ok(Committed::Before(_))), "{again:?}");
    let stored = [("a".to_owned(), 0), ("b".to_owned(), 1)];
    assert_eq!(ground.words().await, stored);
    let digests = "FROM batch_commits WHERE length(digest) = 16";
    assert_eq!(ground.rows("count(*)", digests).await, ["1"]);
}

async fn nothing_to_store_is_a_marker(ground: Ground) {
    for rows in [Arc::new(Rows::None), json(&[])] {
        let batch = BatchId::generate();
        let committed = ground.sink.commit(marker(batch, 1), rows).await.unwrap();
        assert!(matches!(committed, Committed::Now(_)));
        assert!(ground.sink.find(batch).await.unwrap().is_some());
    }
    assert!(ground.words().await.is_empty());
}

async fn a_damaged_marker_is_named(ground: Ground) {
    let batch = BatchId::generate();
    ground
        .sink
        .commit(marker(batch, 1), Arc::new(Rows::None))
        .await
        .unwrap();
    ground
        .execute("UPDATE batch_commits SET outcome = '{\"rows\":'")
        .await;
    let found = ground.sink.find(batch).await;
    assert!(
        matches!(found, Err(SinkError::DamagedMarker { batch: named, .. }) if named == batch),
        "{found:?}"
    );
    let committed = ground.sink.commit(marker(batch, 2), words(&["a"])).await;
    assert!(
        matches!(committed, Err(SinkError::DamagedMarker { .. })),
        "{committed:?}"
    );
    assert!(ground.words().await.is_empty());
}

async fn commit_together(ground: &Ground, rows: impl Fn() -> Arc<Rows>) {
    let starts = (0..6).map(|_| ground.another());
    let sinks = futures::future::join_all(starts).await;
    let commits = sinks
        .iter()
        .map(|sink| sink.commit(marker(BatchId::generate(), 1), rows()));
    for committed in futures::future::join_all(commits).await {
        assert!(matches!(committed, Ok(Committed::Now(_))), "{committed:?}");
    }
}

async fn workers_may_start_together(ground: Ground) {
    commit_together(&ground, || words(&["a"])).await;
    assert_eq!(ground.words().await.len(), 6);
}

async fn a_worker_may_start_after_one_of_the_next_version(ground: Ground) {
    let next = "INSERT INTO _tidegate_sink_migrations \
        SELECT 9999, 'next', installed_on, success, checksum, execution_time \
        FROM _tidegate_sink_migrations WHERE version = 1";
    ground.execute(next).await;
    let sink = ground.another().await;
    let committed = sink
        .commit(marker(BatchId::generate(), 1), words(&["a"]))
        .await;
    assert!(matches!(committed, Ok(Committed::Now(_))), "{committed:?}");
}
