use std::time::Instant;

use harness::postgres;
use shared::name::PipelineName;
use sqlx::{Connection, PgConnection};

use super::*;
use crate::ledger::conformance::{self, Backend};
use crate::ledger::{DispatchLedger, OperationsLedger};

/// Short enough for tests that wait for its end.
const TIMES: LeaseTimes = LeaseTimes {
    length: Duration::from_secs(2),
    renewal: Duration::from_millis(300),
    patience: Duration::from_secs(3),
};

/// A database of its own.
struct Database(String);

impl Database {
    fn new() -> Self {
        Self(postgres::shared().new_database().unwrap())
    }

    async fn open_as(&self, owner: &str) -> Result<PostgresLedger, LedgerError> {
        let (url, owner) = (self.0.clone().into(), Instance::from(owner.to_owned()));
        PostgresLedger::open_for(&url, "postgres://test", 3, &owner, TIMES).await
    }
}

impl Backend for Database {
    type Ledger = PostgresLedger;
    const MIGRATIONS: &str = "_tidegate_ledger_migrations";

    async fn try_open(&self) -> Result<PostgresLedger, LedgerError> {
        self.open_as(Instance::generate("coordinator").as_str())
            .await
    }

    async fn execute(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.0).await.unwrap();
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }

    fn literal(&self, id: BatchId) -> String {
        format!("'{id}'")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_the_conformance_suite() {
    conformance::run(Database::new).await;
}

/// Something small to write.
async fn pause(ledger: &PostgresLedger, name: &str) -> Result<(), LedgerError> {
    let pipeline = PipelineName::new(name).unwrap();
    ledger.pause_pipeline(&pipeline, true).await
}

async fn paused(ledger: &PostgresLedger) -> Vec<String> {
    let paused = ledger.paused_pipelines().await.unwrap();
    paused.iter().map(ToString::to_string).collect()
}

/// Its process is gone, or frozen: nobody renews its lease any more.
fn stop_renewing(ledger: &PostgresLedger) {
    ledger.lease.abandon();
}

#[track_caller]
fn assert_owned_by(result: Result<(), LedgerError>, name: &str) {
    match result {
        Err(LedgerError::Owned { owner, .. }) => assert_eq!(owner, name),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_successor_waits_for_the_lease_of_the_dead() {
    let database = Database::new();
    let first = database.open_as("first").await.unwrap();
    pause(&first, "a").await.unwrap();
    stop_renewing(&first);
    let started = Instant::now();
    let second = database.open_as("second").await.unwrap();
    assert!(started.elapsed() > TIMES.length / 4, "it had a lease");
    assert_eq!(paused(&second).await, ["a"]);

    // The dead one was only frozen: whatever it wants to write, it may not.
    assert_owned_by(pause(&first, "b").await, "second");
    assert!(matches!(first.lost().await, LedgerError::Owned { .. }));
    pause(&second, "c").await.unwrap();
    assert_eq!(paused(&second).await, ["a", "c"]);
}

#[tokio::test]
async fn a_lease_is_renewed_and_its_owner_is_named() {
    let database = Database::new();
    let first = database.open_as("first").await.unwrap();
    let second = database.open_as("second").await;
    assert_owned_by(second.map(drop), "first");
    pause(&first, "a").await.unwrap();
    // Given back, it is free at once.
    first.release().await;
    let started = Instant::now();
    let second = database.open_as("second").await.unwrap();
    assert!(started.elapsed() < TIMES.length, "{:?}", started.elapsed());
    assert_eq!(paused(&second).await, ["a"]);
    assert_owned_by(pause(&first, "b").await, "second");
}

#[tokio::test]
async fn a_takeover_waits_for_the_write_under_way() {
    let database = Database::new();
    let first = database.open_as("first").await.unwrap();
    let mut write = first.begin().await.unwrap();
    sqlx::query("INSERT INTO pipelines (name, paused) VALUES ('late', true)")
        .execute(&mut *write)
        .await
        .unwrap();
    stop_renewing(&first);
    let mut second = std::pin::pin!(database.open_as("second"));
    let waited = timeout(TIMES.length + TIMES.length, &mut second).await;
    assert!(
        waited.is_err(),
        "the lease ran out, but its owner is writing"
    );
    write.commit().await.unwrap();
    let second = second.await.unwrap();
    assert_eq!(paused(&second).await, ["late"]);
    assert_owned_by(pause(&first, "later").await, "second");
}

/// A write that inserts something, and the server's number for its connection.
async fn a_write(ledger: &PostgresLedger) -> (Write, i32) {
    let mut write = ledger.begin().await.unwrap();
    sqlx::query("INSERT INTO pipelines (name) VALUES ('a') ON CONFLICT DO NOTHING")
        .execute(&mut *write)
        .await
        .unwrap();
    let number = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut *write)
        .await
        .unwrap();
    (write, number)
}

#[tokio::test]
async fn a_commit_without_an_answer_is_doubted() {
    let database = Database::new();
    let ledger = database.open_as("first").await.unwrap();
    let mut doubted = std::pin::pin!(ledger.doubted());
    // What was committed, or given up before that, is known.
    a_write(&ledger).await.0.commit().await.unwrap();
    drop(a_write(&ledger).await);
    assert!(futures::poll!(&mut doubted).is_pending());

    let (write, number) = a_write(&ledger).await;
    let end = format!("SELECT pg_terminate_backend({number})");
    database.execute(&end).await;
    write.commit().await.unwrap_err();
    doubted.await;

    let (write, _) = a_write(&ledger).await;
    let mut commit = Box::pin(write.commit());
    assert!(futures::poll!(&mut commit).is_pending());
    drop(commit);
    ledger.doubted().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_away_changes_nothing() {
    let server = postgres::Postgres::start().unwrap();
    let database = Database(server.new_database().unwrap());
    let ledger = database.open_as("first").await.unwrap();
    pause(&ledger, "before").await.unwrap();
    server.crash().unwrap();
    let error = pause(&ledger, "while").await.unwrap_err();
    assert!(matches!(error, LedgerError::Unavailable(_)), "{error}");
    tokio::time::sleep(TIMES.length).await;
    assert!(!ledger.is_sure(), "another one may have it by now");
    server.start_again().unwrap();
    // The connections of before are broken, new ones are made.
    let started = Instant::now();
    while let Err(error) = pause(&ledger, "after").await {
        assert!(matches!(error, LedgerError::Unavailable(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30), "{error}");
    }
    assert_eq!(paused(&ledger).await, ["after", "before"]);
    while !ledger.is_sure() {
        tokio::time::sleep(TIMES.renewal).await;
        assert!(started.elapsed() < Duration::from_mins(1));
    }
}

#[tokio::test]
async fn the_tables_are_where_the_url_says() {
    let database = Database::new();
    database.execute("CREATE SCHEMA apart").await;
    let url = format!("{}?options=-c%20search_path%3Dapart", database.0);
    let apart = Database(url).open_as("first").await.unwrap();
    pause(&apart, "a").await.unwrap();
    // Other tables, another owner.
    let usual = database.open_as("second").await.unwrap();
    assert_eq!(paused(&usual).await, Vec::<String>::new());
    database.execute("SELECT 1 FROM apart.pipelines").await;
}

#[tokio::test]
async fn what_waiting_would_not_mend_is_said_at_once() {
    let database = Database::new();
    let elsewhere = format!("{}_is_not_there", database.0);
    let error = Database(elsewhere).open_as("first").await.unwrap_err();
    assert!(matches!(error, LedgerError::Setup { .. }), "{error}");
    assert!(error.to_string().contains("does not exist"), "{error}");
    let error = Database("postgres://u:secret@".into())
        .open_as("first")
        .await;
    let error = error.unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn backlogs_are_found_by_steps_in_the_index() {
    let database = Database::new();
    let ledger = database.open_as("first").await.unwrap();
    let mut connection = ledger.pool.acquire().await.unwrap();
    sqlx::raw_sql("SET enable_seqscan = off; SET enable_sort = off")
        .execute(&mut *connection)
        .await
        .unwrap();
    let plan: Vec<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("EXPLAIN {}", dispatch::HEADS)))
            .bind(None::<Uuid>)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
    let step = "(run = h.run) AND (ROW(pipeline, key) > ROW(h.pipeline, h.key))";
    assert!(plan.iter().any(|line| line.contains(step)), "{plan:#?}");
}
