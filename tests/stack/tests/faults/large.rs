//! Larger syncs under continuous faults, with a process killed every few seconds.

use std::time::{Duration, Instant};

use harness::rabbitmq::RabbitMq;
use scenario::search_console::{Database, MIXED_FAULTS, READABLE, Sync, finished};

const DAYS: u32 = 30;
const BETWEEN_KILLS: Duration = Duration::from_secs(3);
const KILLING: Duration = Duration::from_mins(1);

async fn survives_a_minute_of_kills(database: Database) {
    let broker = RabbitMq::start().unwrap();
    let settings = format!("{MIXED_FAULTS}[latency]\nmode = \"fixed\"\nms = 100\n");
    let mut sync = Sync::start(&broker, database, &settings, DAYS, &["a", "b", "c"])
        .await
        .unwrap();
    let command = sync.begin(&READABLE).unwrap();
    let start = Instant::now();
    let mut kills = 0_u32;
    while start.elapsed() < KILLING && !command.is_finished() {
        tokio::time::sleep(BETWEEN_KILLS).await;
        match kills % 4 {
            0 => restart_worker(&mut sync, "a"),
            1 => {
                sync.stack.coordinator().kill().unwrap();
                sync.stack.start_coordinator().await.unwrap();
            }
            2 => restart_worker(&mut sync, "b"),
            _ => {
                broker.kill().unwrap();
                broker.start_again().unwrap();
            }
        }
        kills += 1;
    }
    let run = finished(&command.await.unwrap().unwrap()).unwrap();
    eprintln!("{kills} kills in {:?}: {run:?}", start.elapsed());
    assert!(kills >= 4, "the run was over too soon");
    sync.assert_truth(&READABLE).await.unwrap();
}

fn restart_worker(sync: &mut Sync<'_>, name: &str) {
    sync.stack.worker(name).kill().unwrap();
    sync.stack.spawn_worker(name).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_survives_a_minute_of_kills() {
    survives_a_minute_of_kills(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_survives_a_minute_of_kills() {
    survives_a_minute_of_kills(Database::Postgres).await;
}
