//! Cursors, on both databases.

use std::sync::Arc;

use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::{Attempt, Instance};
use shared::outcome::Completed;
use tokio_util::sync::CancellationToken;
use worker::cursor::Cursors;
use worker::handler::Rows;
use worker::sink::postgres::PostgresSink;
use worker::sink::sqlite::SqliteSink;
use worker::sink::{Grouping, Marker, Sink};

use crate::support::postgres::Database;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_stays_until_the_marker_takes_its_place_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.db");
    let sink = SqliteSink::open(&path, Grouping::default(), CancellationToken::new()).await;
    stays_until_the_marker_takes_its_place(sink.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_stays_until_the_marker_takes_its_place_on_postgres() {
    let database = Database::create();
    let url = database.url().into();
    let sink = PostgresSink::connect(&url, Grouping::default(), CancellationToken::new()).await;
    stays_until_the_marker_takes_its_place(sink.unwrap()).await;
}

fn cursor(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

async fn stays_until_the_marker_takes_its_place(sink: impl Sink + Cursors) {
    let (batch, other) = (BatchId::generate(), BatchId::generate());
    let save = async |batch, attempt, text: &str| {
        let saved = sink.save_cursor(batch, Attempt::new(attempt), cursor(text));
        saved.await.unwrap();
    };
    let found = async |batch| {
        let found = sink.cursor(batch).await.unwrap();
        found.map(|cursor| cursor.get().to_owned())
    };
    assert_eq!(found(batch).await, None);
    save(batch, 1, "1").await;
    save(other, 1, r#"{"line":7}"#).await;
    save(batch, 2, "2").await;
    save(batch, 1, "3").await;
    assert_eq!(found(batch).await.unwrap(), "2", "a zombie's is older");
    sink.forget_old_cursors().await.unwrap();
    assert_eq!(found(batch).await.unwrap(), "2", "it is not old");

    let marker = Marker {
        batch,
        attempt: Attempt::new(2),
        writer: Instance::from("w".to_owned()),
        completed: Completed::default(),
        batch_key: None,
    };
    sink.commit(marker, Arc::new(Rows::None)).await.unwrap();
    assert_eq!(found(batch).await, None);
    save(batch, 3, "4").await;
    assert_eq!(found(batch).await, None, "what is done has no cursor");
    assert_eq!(found(other).await.unwrap(), r#"{"line":7}"#);
}
