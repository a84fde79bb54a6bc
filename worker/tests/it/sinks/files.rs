//! Files in a folder: never half of one, and what is between marker and file after a crash.

use std::fs;
use std::sync::Arc;

use ::parquet::record::RowAccessor;
use shared::id::BatchId;
use shared::name::Key;
use worker::handler::Rows;
use worker::sink::{Committed, SinkError};

use super::{json, marker, on, words};
use crate::support::database::{Form, Ground, Kind};
use crate::support::parquet;

on! {
    sqlite: Sqlite Ndjson;
    postgres: Postgres Ndjson;
    => {
        a_file_whose_marker_is_stored_is_finished_by_whoever_finds_it
        a_file_that_was_taken_away_by_its_reader_does_not_come_back
        a_file_without_a_marker_is_swept_away_when_it_is_old
        a_batch_key_has_a_folder_and_files_of_its_own
    }
}

async fn commit(ground: &Ground, key: Option<&str>, rows: Arc<Rows>) -> (BatchId, Committed) {
    let batch = BatchId::generate();
    let mut marker = marker(batch, 1);
    marker.batch_key = key.map(|key| Key::new(key).unwrap());
    (batch, ground.sink.commit(marker, rows).await.unwrap())
}

/// Puts a file back to where it was between the marker and the move.
fn unfinish(ground: &Ground) {
    let [file] = &ground.visible()[..] else {
        panic!("{:?}", ground.visible())
    };
    let name = file.file_name().unwrap();
    fs::rename(file, ground.files().join(".staged").join(name)).unwrap();
    assert!(ground.visible().is_empty());
}

async fn a_file_whose_marker_is_stored_is_finished_by_whoever_finds_it(ground: Ground) {
    let (batch, _) = commit(&ground, None, words(&["a"])).await;
    assert_eq!((ground.visible().len(), ground.staged().len()), (1, 0));

    unfinish(&ground);
    let other = ground.another().await;
    assert!(other.find(batch).await.unwrap().is_some());
    assert_eq!((ground.visible().len(), ground.staged().len()), (1, 0));

    // A worker that ran the batch a second time finds it too, and leaves no file of its own.
    unfinish(&ground);
    let again = other.commit(marker(batch, 2), words(&["b"])).await.unwrap();
    assert!(matches!(again, Committed::Before(_)), "{again:?}");
    assert_eq!((ground.visible().len(), ground.staged().len()), (1, 0));
    assert_eq!(ground.words().await, [("a".to_owned(), 0)]);
}

async fn a_file_that_was_taken_away_by_its_reader_does_not_come_back(ground: Ground) {
    let (batch, _) = commit(&ground, None, words(&["a"])).await;
    fs::remove_file(&ground.visible()[0]).unwrap();
    assert!(ground.sink.find(batch).await.unwrap().is_some());
    let again = ground.sink.commit(marker(batch, 2), words(&["a"])).await;
    assert!(matches!(again, Ok(Committed::Before(_))), "{again:?}");
    assert_eq!((ground.visible().len(), ground.staged().len()), (0, 0));
}

async fn a_file_without_a_marker_is_swept_away_when_it_is_old(ground: Ground) {
    let (_, _) = commit(&ground, None, words(&["a"])).await;
    unfinish(&ground);
    let staged = ground.files().join(".staged");
    let stranger = staged.join(format!("{}-00000000.ndjson", BatchId::generate()));
    fs::write(&stranger, "half a li").unwrap();
    ground.another().await;
    assert_eq!(ground.staged().len(), 2, "they may be somebody's");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_hours(2);
    for file in ground.staged() {
        let file = fs::File::options().write(true).open(file).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    ground.another().await;
    assert_eq!((ground.visible().len(), ground.staged().len()), (1, 0));
    assert_eq!(ground.words().await, [("a".to_owned(), 0)]);
}

async fn a_batch_key_has_a_folder_and_files_of_its_own(ground: Ground) {
    let keys = [
        None,
        Some("day=2026-02-10"),
        Some("../up"),
        Some("day=2026-02-10"),
    ];
    let commits = keys.map(|key| commit(&ground, key, words(&["a"])));
    futures::future::join_all(commits).await;
    let place = |file: &std::path::PathBuf| {
        let below = file.strip_prefix(ground.files()).unwrap().parent().unwrap();
        below.display().to_string()
    };
    let mut folders: Vec<String> = ground.visible().iter().map(place).collect();
    folders.dedup();
    folders.sort();
    folders.dedup();
    assert_eq!(folders, ["", "%2E.%2Fup", "day=2026-02-10"]);
    assert_eq!(ground.words().await.len(), 4);
    let long = marker(BatchId::generate(), 1);
    let long = worker::sink::Marker {
        batch_key: Some(Key::new(&"k".repeat(256)).unwrap()),
        ..long
    };
    let refused = ground.sink.commit(long, words(&["a"])).await;
    assert!(matches!(refused, Err(SinkError::Unfit(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_a_line_whatever_it_looked_like() {
    let ground = Ground::of(Kind::Sqlite, Form::Ndjson).await;
    commit(
        &ground,
        None,
        json(&["{\"a\":\n 1.50}", "\"ä\\n\"", "null"]),
    )
    .await;
    let text = fs::read_to_string(&ground.visible()[0]).unwrap();
    assert_eq!(text, "{\"a\":  1.50}\n\"ä\\n\"\nnull\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_has_every_type_as_it_is_declared() {
    let ground = Ground::of(Kind::Sqlite, Form::Parquet).await;
    let full = r#"{"word": "ä", "n": 7, "small": -1, "share": 0.1, "flag": true, "day": "1970-01-02",
        "at": "1970-01-01T00:00:01.000001Z", "doc": {"b": [1.50]}, "note": ""}"#;
    commit(&ground, None, json(&[full, r#"{"word": "", "n": 0}"#])).await;
    let rows = parquet::rows(&ground.visible()[0]);
    let [full, bare] = &rows[..] else {
        panic!("{rows:?}")
    };
    assert_eq!(full.get_string(0).unwrap(), "ä");
    assert_eq!(
        (full.get_int(1).unwrap(), full.get_long(2).unwrap()),
        (-1, 7)
    );
    assert_eq!(
        (full.get_double(3).unwrap(), full.get_bool(4).unwrap()),
        (0.1, true)
    );
    assert_eq!(full.get_timestamp_micros(5).unwrap(), 1_000_001);
    assert!(full.to_string().contains("day: 1970-01-02"), "{full}");
    assert_eq!(full.get_string(8).unwrap(), "");
    assert_eq!(bare.get_long(2).unwrap(), 0);
    let text = bare.to_string();
    assert_eq!(text.matches("null").count(), 7, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_do_not_fit_parquet_are_named() {
    let ground = Ground::of(Kind::Sqlite, Form::Parquet).await;
    let rows = json(&[r#"{"word": "a", "n": 1.5}"#]);
    let refused = ground
        .sink
        .commit(marker(BatchId::generate(), 1), rows)
        .await;
    let expected = "row 0: column \"n\" is 1.5, not bigint";
    assert!(
        matches!(&refused, Err(SinkError::Unfit(problem)) if problem.contains(expected)),
        "{refused:?}"
    );
    assert!(ground.staged().is_empty());
}
