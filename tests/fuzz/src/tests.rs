//! The targets as ordinary tests.

use std::path::Path;
use std::sync::Arc;

use coordinator::ledger::Ledger;
use coordinator::ledger::postgres::PostgresLedger;
use coordinator::ledger::sqlite::SqliteLedger;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shared::name::Instance;

use super::{TARGETS, outcomes, submission};

/// Names a folder with a folder of further inputs for each target.
const CORPUS: &str = "TIDEGATE_FUZZ_CORPUS";

/// A few bytes of a seed are changed, added or left out, as libFuzzer does, but blindly.
fn change(input: &mut Vec<u8>, random: &mut SmallRng) {
    for _ in 0..random.random_range(1..8) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..4) {
            0 => input.insert(at, random.random()),
            1 => input.truncate(at),
            2 if at < input.len() => input[at] = random.random(),
            _ if at < input.len() => drop(input.remove(at)),
            _ => {}
        }
    }
}

/// A target's seeds, and what was found from them if there is a corpus.
fn inputs(target: &str) -> Vec<Vec<u8>> {
    let found = TARGETS.iter().find(|known| known.name == target);
    let mut inputs = (found.expect("a target").seeds)();
    assert!(!inputs.is_empty(), "{target} has no seeds");
    if let Some(corpus) = std::env::var_os(CORPUS) {
        let folder = Path::new(&corpus).join(target);
        for file in std::fs::read_dir(folder).into_iter().flatten() {
            inputs.push(std::fs::read(file.unwrap().path()).unwrap());
        }
    }
    inputs
}

#[test]
fn real_inputs_and_what_is_near_them_break_nothing() {
    let mut random = SmallRng::seed_from_u64(1);
    for target in TARGETS {
        for seed in inputs(target.name) {
            (target.run)(&seed);
            for _ in 0..50 {
                let mut input = seed.clone();
                change(&mut input, &mut random);
                (target.run)(&input);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ledgers_store_what_is_accepted_and_agree() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteLedger::open(&folder.path().join("ledger.db")).await;
    let sqlite: Arc<dyn Ledger> = Arc::new(sqlite.unwrap());
    let url = harness::postgres::shared().new_database().unwrap();
    let owner = Instance::generate("fuzz");
    let postgres = PostgresLedger::open(&url.into(), "a database", 1, &owner).await;
    let postgres: Arc<dyn Ledger> = Arc::new(postgres.unwrap());

    for input in inputs("submission") {
        submission::store(&sqlite, &input).await;
        submission::store(&postgres, &input).await;
    }
    for case in inputs("outcomes")
        .iter()
        .filter_map(|input| outcomes::case(input))
    {
        let stored = outcomes::store(&*sqlite, &case).await;
        let stored = stored.unwrap_or_else(|error| panic!("{error} in {case:?}"));
        let other = outcomes::store(&*postgres, &case).await;
        let other = other.unwrap_or_else(|error| panic!("{error} in {case:?}"));
        assert_eq!(stored, other, "{case:?}");
    }
    postgres.release().await;
}
