//! Tables with declared columns.

use shared::id::BatchId;
use shared::payload::JsonError;
use worker::collect::BadRow;
use worker::sink::{Committed, SinkError};

use super::{json, marker, on, words};
use crate::support::database::{Form, Ground, Kind};

on! {
    sqlite: Sqlite Table;
    postgres: Postgres Table;
    => {
        every_type_is_stored_as_it_is_declared
        a_row_that_does_not_fit_is_named_and_stores_nothing
        what_the_table_itself_refuses_fails_its_batch_alone
        another_table_of_that_name_is_refused_at_the_start
    }
}

const FULL: &str = r#"{"n": -9223372036854775808, "word": "ä\n'\"", "small": -1, "share": 0.1, "flag": true,
    "at": "2026-02-10T10:00:00.1234567+02:00", "day": "2024-02-29", "doc": {"b": [1.50, "x"]}, "note": ""}"#;
const BARE: &str = r#"{"word": "", "n": 0, "share": null}"#;

async fn every_type_is_stored_as_it_is_declared(ground: Ground) {
    let committed = ground
        .sink
        .commit(marker(BatchId::generate(), 1), json(&[FULL, BARE]))
        .await;
    assert!(matches!(committed, Ok(Committed::Now(_))), "{committed:?}");
    let rows = ground
        .rows(
            "word, small, n, share, flag, day, doc, note",
            "FROM visits ORDER BY n",
        )
        .await;
    let flag = if ground.kind() == Kind::Sqlite {
        "1"
    } else {
        "true"
    };
    let full = format!(
        "ä\n'\"\t-1\t-9223372036854775808\t0.1\t{flag}\t2024-02-29\t{{\"b\": [1.50, \"x\"]}}\t"
    );
    let bare = "\tNULL\t0\tNULL\tNULL\tNULL\tNULL\tNULL";
    assert_eq!(rows, [full.as_str(), bare]);
    let at = match ground.kind() {
        Kind::Sqlite => "at",
        Kind::Postgres => "extract(epoch FROM at)::text",
    };
    let expected = match ground.kind() {
        Kind::Sqlite => "2026-02-10T08:00:00.123456Z",
        Kind::Postgres => "1770710400.123456",
    };
    let stored = ground.rows(at, "FROM visits ORDER BY n LIMIT 1").await;
    assert_eq!(stored, [expected]);
}

async fn a_row_that_does_not_fit_is_named_and_stores_nothing(ground: Ground) {
    let fine = r#"{"word": "a", "n": 1}"#;
    for (bad, expected) in [
        (
            r#"{"word": "a", "n": "1"}"#,
            "row 1: column \"n\" is text, not bigint",
        ),
        (r#"{"word": "a"}"#, "row 1: column \"n\" is missing"),
        (
            r#"{"word": "a", "n": 1, "x": 1}"#,
            "row 1: has a field \"x\"",
        ),
        (
            r#"{"word": "a", "n": 9223372036854775808}"#,
            "row 1: column \"n\" is 9223372036854775808, not bigint",
        ),
        (
            r#"{"word": "a", "n": 1, "share": "NaN"}"#,
            "row 1: column \"share\" is text, not float",
        ),
        (
            r#"{"word": "a\u0000", "n": 1}"#,
            "row 1: column \"word\" contains a NUL",
        ),
        ("[]", "row 1: is no object"),
    ] {
        let refused = ground
            .sink
            .commit(marker(BatchId::generate(), 1), json(&[fine, bad]))
            .await;
        let Err(SinkError::Unfit(problem)) = refused else {
            panic!("{bad}: {refused:?}")
        };
        assert!(problem.contains(expected), "{problem}");
        let refused = ground.sink.form().collector().push(bad).unwrap_err();
        // No sink takes a NUL, whatever its columns are.
        if expected.contains("NUL") {
            assert_eq!(refused, BadRow::Json(JsonError::Nul));
            continue;
        }
        let expected = expected.trim_start_matches("row 1: ");
        assert!(refused.to_string().contains(expected), "{refused}");
    }
    assert!(ground.words().await.is_empty());
    assert_eq!(ground.rows("count(*)", "FROM batch_commits").await, ["0"]);
}

async fn what_the_table_itself_refuses_fails_its_batch_alone(ground: Ground) {
    ground
        .execute("CREATE UNIQUE INDEX visits_word ON visits (word)")
        .await;
    let taken = words(&["taken"]);
    ground
        .sink
        .commit(marker(BatchId::generate(), 1), taken.clone())
        .await
        .unwrap();
    let commits = (0..64).map(|n| {
        let rows = if n == 33 {
            taken.clone()
        } else {
            words(&[&n.to_string()])
        };
        ground.sink.commit(marker(BatchId::generate(), 1), rows)
    });
    let results = futures::future::join_all(commits).await;
    for (n, result) in results.iter().enumerate() {
        assert_eq!(
            matches!(result, Err(SinkError::Refused(_))),
            n == 33,
            "{n}: {result:?}"
        );
    }
    assert_eq!(ground.words().await.len(), 64);
    assert_eq!(ground.rows("count(*)", "FROM batch_commits").await, ["64"]);
}

async fn another_table_of_that_name_is_refused_at_the_start(ground: Ground) {
    let integer = match ground.kind() {
        Kind::Sqlite => "INTEGER",
        Kind::Postgres => "int8",
    };
    for (change, expected) in [
        (
            "ALTER TABLE visits DROP COLUMN note",
            "column \"note\": the table has no such column".to_owned(),
        ),
        (
            "ALTER TABLE visits ADD COLUMN note bigint",
            "column \"note\": is bigint in the table, and would have to be text".to_owned(),
        ),
    ] {
        let change = change.replace("bigint", integer);
        ground.execute(&change).await;
        let expected = expected.replace("bigint", integer).replace(
            "to be text",
            match ground.kind() {
                Kind::Sqlite => "to be TEXT",
                Kind::Postgres => "to be text",
            },
        );
        match ground.reopen().await {
            Err(SinkError::Schema(problem)) => assert!(problem.contains(&expected), "{problem}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{change} was not seen"),
        }
    }
}

/// A table may have more columns than are declared, as long as it needs no value for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_may_have_columns_of_its_own() {
    let ground = Ground::of(Kind::Postgres, Form::Table).await;
    ground
        .execute("ALTER TABLE visits ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY")
        .await;
    let again = ground.another().await;
    again
        .commit(marker(BatchId::generate(), 1), words(&["a"]))
        .await
        .unwrap();
    assert_eq!(ground.rows("id, word", "FROM visits").await, ["1\ta"]);
    ground
        .execute("ALTER TABLE visits ADD COLUMN owner text NOT NULL DEFAULT 'me'")
        .await;
    ground.another().await;
    ground
        .execute("ALTER TABLE visits ALTER COLUMN owner DROP DEFAULT")
        .await;
    let refused = ground.reopen().await.map(drop).unwrap_err().to_string();
    assert!(
        refused.contains("\"owner\": the table wants a value"),
        "{refused}"
    );
}
