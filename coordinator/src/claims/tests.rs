use std::collections::HashMap;
use std::sync::Mutex;

use shared::id::BatchId;
use shared::name::Attempt;
use shared::presence::Presence;

use super::*;
use crate::fleet::Fleet;
use crate::ledger::{Effect, OutSince, Settled, Stored};

fn instance(name: &str) -> Instance {
    Instance::from(name.to_owned())
}

fn stored(state: BatchState, attempt: u32) -> Stored {
    Stored {
        state,
        attempt: Attempt::new(attempt),
        failures: 0,
        releases: 0,
        called_off: false,
    }
}

fn suspect(deaths: u32, alone_on: Option<&str>) -> Suspect {
    Suspect {
        stored: stored(BatchState::Out, 2),
        deaths,
        alone_on: alone_on.map(instance),
    }
}

fn request(alone: bool) -> ClaimRequest {
    ClaimRequest {
        batch: BatchId::generate(),
        attempt: Attempt::new(2),
        worker: instance("now"),
        alone,
    }
}

#[test]
fn what_needs_no_work_is_dropped() {
    use BatchState::{Cancelled, Completed, Dead, Out, Pending};
    let dropped = Ruling::Answer(ClaimAnswer::Drop);
    let cases = [
        (Pending, 1, false),
        (Pending, 2, true),
        (Pending, 0, true),
        (Out, 2, false),
        (Out, 1, true),
        (Out, 3, true),
        (Completed, 2, true),
        (Dead, 2, true),
        (Cancelled, 1, true),
        (Cancelled, 2, true),
    ];
    for (state, attempt, expected) in cases {
        let suspect = Suspect {
            stored: stored(state, attempt),
            ..suspect(0, None)
        };
        for before in [Before::Lives, Before::Died] {
            let is_dropped = rule(&suspect, &request(false), before) == dropped;
            assert_eq!(is_dropped, expected, "{state}, attempt {attempt} stored");
        }
    }
}

#[test]
fn a_cancelled_runs_batch_is_not_run() {
    let mut suspect = suspect(1, None);
    suspect.stored.called_off = true;
    assert_eq!(
        rule(&suspect, &request(false), Before::Died),
        Ruling::Answer(ClaimAnswer::Cancelled)
    );
}

#[test]
fn deaths_are_counted_as_the_table_says() {
    use Before::{Died, Lives};
    use ClaimAnswer::{Alone, Run};
    let remember = |answer, deaths, alone_on: Option<&str>| Ruling::Remember {
        answer,
        deaths,
        alone_on: alone_on.map(instance),
    };
    let cases = [
        (0, None, false, Lives, remember(Run, 0, None)),
        (0, None, false, Died, remember(Alone, 1, None)),
        (0, None, true, Died, remember(Alone, 1, Some("now"))),
        (1, None, false, Lives, remember(Alone, 1, None)),
        // Again with neighbours: no news.
        (1, None, false, Died, remember(Alone, 1, None)),
        (1, None, true, Died, remember(Alone, 1, Some("now"))),
        (1, Some("w"), false, Lives, remember(Alone, 1, None)),
        (1, Some("w"), false, Died, remember(Alone, 2, None)),
        (2, None, true, Died, remember(Alone, 2, Some("now"))),
        (2, Some("w"), false, Lives, remember(Alone, 2, None)),
        (2, Some("w"), false, Died, Ruling::Poison(3)),
    ];
    for (deaths, alone_on, alone, before, expected) in cases {
        let ruling = rule(&suspect(deaths, alone_on), &request(alone), before);
        assert_eq!(ruling, expected, "{deaths} {alone_on:?} {alone} {before:?}");
    }
}

/// One batch, in memory.
struct Memory {
    suspect: Mutex<Suspect>,
    settled: Mutex<Vec<Judged>>,
}

#[async_trait]
impl ReconciliationLedger for Memory {
    async fn out_since(&self, _: Timestamp, _: u32) -> Result<Vec<OutSince>, LedgerError> {
        Ok(vec![])
    }

    async fn suspect(&self, _: BatchId) -> Result<Option<Suspect>, LedgerError> {
        Ok(Some(self.suspect.lock().unwrap().clone()))
    }

    async fn suspected(
        &self,
        _: BatchId,
        _: Attempt,
        deaths: u32,
        alone_on: Option<&Instance>,
    ) -> Result<(), LedgerError> {
        let mut suspect = self.suspect.lock().unwrap();
        (suspect.deaths, suspect.alone_on) = (deaths, alone_on.cloned());
        Ok(())
    }
}

#[async_trait]
impl SettlementLedger for Memory {
    async fn settle(&self, outcomes: &[Judged], _: Timestamp) -> Result<Vec<Settled>, LedgerError> {
        self.settled.lock().unwrap().extend_from_slice(outcomes);
        self.suspect.lock().unwrap().stored.state = BatchState::Dead;
        let settled = |judged: &Judged| Settled {
            batch: judged.batch,
            attempt: judged.attempt,
            effect: Effect::Dead,
            backlogs: vec![],
        };
        Ok(outcomes.iter().map(settled).collect())
    }
}

fn suspects(suspect: Suspect) -> (Suspects, Arc<Memory>, mpsc::Receiver<Notice>) {
    let memory = Arc::new(Memory {
        suspect: Mutex::new(suspect),
        settled: Mutex::default(),
    });
    let (notices, heard) = mpsc::channel(8);
    let mut fleet = Fleet::default();
    fleet.listens(Instant::now());
    let suspects = Suspects {
        ledger: memory.clone(),
        settlement: memory.clone(),
        fleet: Arc::new(Mutex::new(fleet)),
        notices,
    };
    (suspects, memory, heard)
}

/// What a worker says.
fn words(worker: &str, returned: Vec<BatchId>) -> Presence {
    Presence {
        worker: instance(worker),
        version: "1".into(),
        pipelines: vec![],
        slots: 1,
        holding: vec![],
        progress: HashMap::new(),
        draining: false,
        leaving: false,
        returned,
        lanes: 2,
        memory_bytes: 0,
        clock_ms: 0,
    }
}

impl Suspects {
    fn hear(&self, presence: Presence) {
        let mut fleet = self.fleet.lock().unwrap();
        fleet.hear(presence, Instant::now(), Timestamp::now());
    }

    async fn answer(&self, batch: BatchId, worker: &str, alone: bool) -> ClaimAnswer {
        let request = ClaimRequest {
            batch,
            worker: instance(worker),
            ..request(alone)
        };
        self.claim(&request).await.unwrap()
    }
}

#[tokio::test]
async fn what_was_given_back_is_run_even_if_the_word_comes_a_little_late() {
    let (suspects, memory, _heard) = suspects(suspect(0, None));
    let batch = BatchId::generate();
    let late = async {
        sleep(WORD_BEHIND / 4).await;
        suspects.hear(words("before", vec![batch]));
    };
    let (answer, ()) = tokio::join!(suspects.answer(batch, "now", false), late);
    assert_eq!(answer, ClaimAnswer::Run);
    assert_eq!(memory.suspect.lock().unwrap().deaths, 0);
}

#[tokio::test]
async fn a_worker_that_lost_its_connection_has_not_died() {
    let (suspects, memory, _heard) = suspects(suspect(2, Some("before")));
    let late = async {
        sleep(WORD_BEHIND * 2).await;
        suspects.hear(words("before", vec![]));
    };
    let asking = suspects.answer(BatchId::generate(), "now", false);
    let (answer, ()) = tokio::join!(asking, late);
    assert_eq!(answer, ClaimAnswer::Alone);
    assert_eq!(memory.suspect.lock().unwrap().deaths, 2);
}

#[tokio::test]
async fn last_words_are_no_sign_of_life() {
    let (suspects, memory, _heard) = suspects(suspect(1, Some("before")));
    let late = async {
        sleep(WORD_BEHIND / 4).await;
        suspects.hear(words("before", vec![]));
    };
    let asking = suspects.answer(BatchId::generate(), "now", false);
    let (answer, ()) = tokio::join!(asking, late);
    assert_eq!(answer, ClaimAnswer::Alone);
    assert_eq!(memory.suspect.lock().unwrap().deaths, 2);
}

#[tokio::test]
async fn three_deaths_are_enough() {
    let (suspects, memory, mut heard) = suspects(suspect(0, None));
    let batch = BatchId::generate();
    for worker in ["w1", "w2"] {
        assert_eq!(
            suspects.answer(batch, worker, false).await,
            ClaimAnswer::Alone
        );
        assert_eq!(
            suspects.answer(batch, worker, true).await,
            ClaimAnswer::Alone
        );
    }
    assert_eq!(suspects.answer(batch, "w3", false).await, ClaimAnswer::Drop);
    let settled = memory.settled.lock().unwrap();
    assert!(
        matches!(&settled[..], [Judged { verdict: Verdict::Kill { reason, .. }, worker: Some(w), .. }]
            if reason == POISON && *w == instance("w2")),
        "{settled:?}"
    );
    assert!(matches!(heard.try_recv(), Ok(Notice::Settled(_))));
}

#[tokio::test]
async fn nobody_is_blamed_by_a_coordinator_that_hears_nobody() {
    let (suspects, memory, _heard) = suspects(suspect(2, Some("before")));
    suspects.fleet.lock().unwrap().is_deaf();
    let answer = suspects.answer(BatchId::generate(), "now", false).await;
    assert_eq!(answer, ClaimAnswer::Alone);
    assert_eq!(memory.suspect.lock().unwrap().deaths, 2);
}
