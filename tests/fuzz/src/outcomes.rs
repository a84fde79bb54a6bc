//! A message on an outcomes queue, as a coordinator takes it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coordinator::ledger::transition::{self, State};
use coordinator::ledger::{
    Effect, Judged, Ledger, LedgerError, NewBatch, NewRun, Ownership, Settled, SettlementLedger,
    Verdict,
};
use coordinator::run::{Priority, Run};
use coordinator::settlement::{Pulse, SettlementStage};
use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;
use shared::broker::Connector;
use shared::config::{BrokerConfig, PipelineConfig};
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, Key, PipelineName};
use shared::outcome::{
    Completed, FollowUp, MAX_ERROR_BYTES, Outcome, Outcomes, Report, Statistics,
};
use shared::payload;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{RUNTIME, message};

/// So many batches may count this much before a sum of 64 bits is full: eight million.
const MAX_COUNT: u64 = 1 << 40;

const STATES: [State; 5] = [
    State::Pending,
    State::Out,
    State::Completed,
    State::Dead,
    State::Cancelled,
];

/// Only asked for its judgement.
static STAGE: LazyLock<SettlementStage> = LazyLock::new(|| {
    let _entered = RUNTIME.enter();
    let connector = Connector::new(&BrokerConfig::default(), &Instance::from("fuzz".to_owned()));
    let pipeline = PipelineName::new("gsc.slice").expect("a name");
    SettlementStage {
        ledger: Arc::new(NoLedger),
        ownership: Arc::new(NoLedger),
        publishing: connector.publishing_pool(),
        connector,
        lanes: 2,
        pipelines: BTreeMap::from([(pipeline, PipelineConfig::default())]),
        pulse: Arc::new(Mutex::new(Pulse::new(Instant::now()))),
        notices: mpsc::channel(1).0,
        draining: CancellationToken::new(),
    }
});

/// Whatever a worker says, there is a judgement in words that any ledger can store, counts that stay far from
/// their limits, and a legal state after it, whatever the state before.
pub fn run(input: &[u8]) {
    let (properties, body) = message::read(input);
    let Ok(outcomes) = Outcomes::decode(&properties, body) else {
        return;
    };
    let again = serde_json::to_vec(&outcomes).expect("outcomes are plain data");
    let again = Outcomes::decode(&properties, &again).expect("what was read can be sent on");
    assert_eq!(again, outcomes);
    for report in outcomes.reports {
        let judged = STAGE.judge(&outcomes.worker, report);
        assert_storable(&judged);
        for state in STATES {
            for called_off in [false, true] {
                settle(&judged, state, called_off);
            }
        }
    }
}

/// No database refuses it: one that cannot be stored would hold up all others for ever.
fn assert_storable(judged: &Judged) {
    let texts: Vec<&String> = match &judged.verdict {
        Verdict::Complete {
            rows,
            statistics,
            follow_ups,
        } => {
            let counts = statistics.values().chain([rows]);
            assert!(statistics.len() <= 100 && counts.max() <= Some(&MAX_COUNT));
            for follow_up in follow_ups {
                payload::check(&follow_up.payload).expect("a payload that may be");
            }
            statistics.keys().collect()
        }
        Verdict::Retry { error, .. } => vec![error],
        Verdict::Hold { reason, .. } | Verdict::Release { reason } => vec![reason],
        Verdict::Lose => vec![],
        Verdict::Kill { reason, error } => vec![reason, error],
    };
    let worker = judged.worker.as_ref().map(Instance::as_str);
    for text in texts.into_iter().map(String::as_str).chain(worker) {
        assert!(
            text.len() <= MAX_ERROR_BYTES,
            "{} bytes of text",
            text.len()
        );
        assert!(!text.contains('\0'), "NUL in {text:?}");
    }
}

fn settle(judged: &Judged, state: State, called_off: bool) {
    let before = judged.attempt.number().saturating_sub(1);
    for attempt in [before, before.saturating_add(1), before.saturating_add(2)] {
        let stored = transition::Stored {
            state,
            attempt: Attempt::new(attempt),
            failures: before.min(3),
            releases: 99,
            called_off,
        };
        let change = transition::settle(&stored, judged, now());
        let Some(update) = change.store else {
            let nothing = [Effect::Duplicate, Effect::Stale, Effect::Unknown];
            assert!(nothing.contains(&change.effect), "{change:?}");
            continue;
        };
        assert!(update.stored.attempt >= stored.attempt && update.due >= now());
        let expected = match change.effect {
            Effect::Completed | Effect::CompletedLate => Some(State::Completed),
            Effect::Again => Some(State::Pending),
            Effect::Dead => Some(State::Dead),
            Effect::Cancelled => Some(State::Cancelled),
            Effect::Duplicate | Effect::Stale | Effect::Unknown => None,
        };
        assert_eq!(Some(update.stored.state), expected);
    }
}

/// Outcomes of batches that are out, as a ledger gets them.
#[derive(Debug)]
pub struct Case {
    run: NewRun,
    batches: Vec<NewBatch>,
    outcomes: Vec<Judged>,
}

/// What a ledger made of a case.
#[derive(Debug, PartialEq)]
pub struct Stored {
    run: Run,
    effects: Vec<Effect>,
    batches: Vec<Value>,
}

/// Makes a case of an input, with batches of its own: the same input can be stored again and again.
#[must_use]
pub fn case(input: &[u8]) -> Option<Case> {
    let (properties, body) = message::read(input);
    let outcomes = Outcomes::decode(&properties, body).ok()?;
    let mut batches: BTreeMap<BatchId, NewBatch> = BTreeMap::new();
    let mut judged = Vec::new();
    for mut report in outcomes.reports {
        let batch = batches.entry(report.batch).or_insert_with(|| NewBatch {
            id: BatchId::generate(),
            pipeline: PipelineName::new("gsc.slice").expect("a name"),
            key: Key::default(),
            payload: RawValue::from_string("1".into()).expect("JSON"),
            due: now(),
        });
        report.batch = batch.id;
        // Attempts that were made, and the next one.
        report.attempt = report.attempt.min(Attempt::new(2));
        judged.push(STAGE.judge(&outcomes.worker, report));
    }
    let run = NewRun {
        id: RunId::generate(),
        pipeline: PipelineName::new("gsc.slice").expect("a name"),
        priority: Priority::Normal,
        idempotency_key: None,
        webhook: None,
        created_at: now(),
    };
    Some(Case {
        run,
        batches: batches.into_values().collect(),
        outcomes: judged,
    })
}

/// Settles a case in a real ledger, twice: every batch is counted, and the second time changes nothing.
pub async fn store(ledger: &dyn Ledger, case: &Case) -> Result<Stored, LedgerError> {
    let Case {
        run,
        batches,
        outcomes,
    } = case;
    ledger.open_run(run).await?;
    ledger.append(run.id, batches).await?;
    ledger.accept(run.id, &[7; 32]).await?;
    let out: Vec<_> = batches.iter().map(|b| (b.id, Attempt::new(1))).collect();
    ledger.record_out(&out, now()).await?;
    let settled = ledger.settle(outcomes, now()).await?;
    let stored = view(ledger, case, &settled).await?;
    let again = ledger.settle(outcomes, now()).await?;
    let nothing = [Effect::Duplicate, Effect::Stale, Effect::Unknown];
    // An outcome of the next attempt counts once the one before has put the batch back.
    if outcomes
        .iter()
        .all(|outcome| outcome.attempt < Attempt::new(2))
    {
        assert!(
            again
                .iter()
                .all(|settled| nothing.contains(&settled.effect))
        );
        assert_eq!(view(ledger, case, &settled).await?, stored);
    }
    Ok(stored)
}

async fn view(
    ledger: &dyn Ledger,
    case: &Case,
    settled: &[Settled],
) -> Result<Stored, LedgerError> {
    let run = ledger.run(case.run.id).await?.expect("it was accepted");
    let counts = run.batches;
    let sum = counts.pending + counts.out + counts.finished();
    assert_eq!(counts.accepted, sum);
    let mut batches = Vec::new();
    for batch in &case.batches {
        let detail = ledger.batch(batch.id).await?.expect("it was accepted");
        batches.push(serde_json::to_value(detail).expect("batches can be shown"));
    }
    Ok(Stored {
        run,
        effects: settled.iter().map(|settled| settled.effect).collect(),
        batches,
    })
}

fn now() -> Timestamp {
    Timestamp::from_second(1_770_000_000).expect("a time")
}

struct NoLedger;

#[async_trait]
impl SettlementLedger for NoLedger {
    async fn settle(&self, _: &[Judged], _: Timestamp) -> Result<Vec<Settled>, LedgerError> {
        unreachable!("nothing is settled here")
    }
}

impl Ownership for NoLedger {
    fn is_sure(&self) -> bool {
        true
    }
}

/// Every kind of outcome.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let follow_up = FollowUp {
        pipeline: PipelineName::new("gsc.slice").expect("a name"),
        key: Key::new("sc-domain:example.com").expect("a key"),
        payload: RawValue::from_string("{\"day\":\"2026-02-10\"}".into()).expect("JSON"),
    };
    let completed = Completed {
        rows: 3,
        statistics: Statistics::from([("api_calls".into(), 2)]),
        follow_ups: vec![follow_up],
    };
    let span = Duration::from_secs(1);
    let all = [
        Outcome::Completed(completed),
        Outcome::Retry {
            error: "reset".into(),
            after_ms: Some(span),
        },
        Outcome::Throttled {
            reason: "quota".into(),
            after_ms: span,
        },
        Outcome::Failed {
            reason: "bad_request".into(),
            error: "no".into(),
        },
        Outcome::Released {
            reason: "unsupported_version".into(),
        },
    ];
    let reports = all.map(|outcome| Report {
        batch: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("gsc.slice").expect("a name"),
        attempt: Attempt::new(1),
        redelivered: false,
        took: Some(span),
        outcome,
    });
    let message = |reports: &[Report]| {
        let outcomes = Outcomes {
            worker: Instance::from("worker-1".to_owned()),
            reports: reports.to_vec(),
        };
        let body = serde_json::to_vec(&outcomes).expect("outcomes are plain data");
        message::write(&Outcomes::properties("m", 1_770_000_000), &body)
    };
    let alone = reports
        .iter()
        .map(|report| message(std::slice::from_ref(report)));
    alone.chain([message(&reports)]).collect()
}
