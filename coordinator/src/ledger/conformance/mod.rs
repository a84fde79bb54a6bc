//! What every ledger must do, whatever database is behind it. Each backend runs this suite on itself.
//!
//! Whenever a check looks at a run, the whole ledger is audited: counters of runs and pipelines are
//! compared with the batches, one by one.

mod dead;
mod dispatch;
mod memory;
mod operations;
mod random;
mod reconciliation;
mod settlement;
mod storage;
mod submission;
mod views;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::backoff::Backoff;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, Key, PipelineName};
use shared::outcome::{FollowUp, Statistics};

use super::transition::{RetryPolicy, State};
use super::{Effect, Judged, Ledger, LedgerError, NewBatch, NewRun, Opened, Settled, Verdict};
use crate::run::{BatchCounts, BatchDetail, PipelineCounts, Priority, Run};

/// Fresh storage that can be opened again and again.
pub(super) trait Backend {
    type Ledger: Ledger;
    /// The table that says which migrations were applied.
    const MIGRATIONS: &str;
    /// Opens the ledger, which succeeds.
    async fn open(&self) -> Self::Ledger {
        self.try_open().await.unwrap()
    }
    /// Opens the ledger.
    async fn try_open(&self) -> Result<Self::Ledger, LedgerError>;
    /// Changes what is stored, behind the ledger's back.
    async fn execute(&self, sql: &str);
    /// A batch's id as an SQL literal.
    fn literal(&self, id: BatchId) -> String;
}

/// Runs every check on storage of its own.
pub(super) async fn run<B: Backend>(fresh: impl Fn() -> B) {
    submission::a_run_exists_only_once_it_is_accepted(&fresh()).await;
    submission::a_small_run_is_taken_at_once(&fresh()).await;
    submission::an_idempotency_key_gives_the_same_run(&fresh()).await;
    submission::what_a_crash_left_half_submitted_is_gone(&fresh()).await;
    submission::saying_it_twice_changes_nothing(&fresh()).await;
    dispatch::pages_come_in_order_of_due_time(&fresh()).await;
    dispatch::payloads_come_back_as_they_were(&fresh()).await;
    dispatch::every_backlog_is_found_once(&fresh()).await;
    dispatch::what_is_being_submitted_never_goes_out(&fresh()).await;
    dispatch::what_waits_is_counted_as_far_as_it_matters(&fresh()).await;
    settlement::batches_go_out_and_are_settled(&fresh()).await;
    settlement::an_outcome_may_overtake_its_recording(&fresh()).await;
    settlement::follow_ups_exist_exactly_once(&fresh()).await;
    settlement::failures_wait_and_end_dead(&fresh()).await;
    settlement::a_late_completion_wins(&fresh()).await;
    settlement::a_completion_that_was_called_lost_wins(&fresh()).await;
    settlement::strangers_are_unknown(&fresh()).await;
    settlement::a_large_group_is_one_group(&fresh()).await;
    settlement::sums_stop_at_the_largest_number(&fresh()).await;
    settlement::a_group_of_many_runs_keeps_them_apart(&fresh()).await;
    operations::a_cancelled_run_ends_chunk_by_chunk(&fresh()).await;
    operations::what_is_out_when_its_run_is_cancelled_ends_by_its_outcome(&fresh()).await;
    operations::a_paused_run_waits_and_goes_on(&fresh()).await;
    operations::finished_runs_stay_as_they_are(&fresh()).await;
    operations::priorities_change(&fresh()).await;
    operations::pipelines_are_paused(&fresh()).await;
    dead::filters_choose(&fresh()).await;
    dead::redriven_batches_start_over_in_time(&fresh()).await;
    dead::cancelled_runs_are_not_redriven(&fresh()).await;
    dead::discarded_batches_are_cancelled(&fresh()).await;
    dead::a_long_reason_is_cut(&fresh()).await;
    reconciliation::what_is_out_for_long_is_found(&fresh()).await;
    reconciliation::suspects_are_remembered(&fresh()).await;
    reconciliation::only_the_attempt_that_is_out_is_suspected(&fresh()).await;
    memory::what_is_remembered_survives(&fresh()).await;
    memory::webhooks_are_due_when_runs_finish(&fresh()).await;
    memory::every_end_of_a_run_is_told(&fresh()).await;
    views::a_batch_tells_its_history(&fresh()).await;
    views::a_late_completion_ends_the_history(&fresh()).await;
    views::long_histories_keep_their_end(&fresh()).await;
    views::batches_are_listed_in_order(&fresh()).await;
    views::the_oldest_due_is_of_a_running_run(&fresh()).await;
    storage::one_owner_at_a_time(&fresh()).await;
    storage::newer_tables_are_refused(&fresh()).await;
    storage::a_damaged_cell_is_named_and_stops_nobody_else(&fresh()).await;
    random::counts_agree_whatever_happens(&fresh()).await;
    random::counts_agree_when_much_happens_at_once(&fresh()).await;
}

const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);

fn after(seconds: u64) -> Timestamp {
    NOW + Duration::from_secs(seconds)
}

fn pipeline() -> PipelineName {
    PipelineName::new("hashes").unwrap()
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn new_run() -> NewRun {
    NewRun {
        id: RunId::generate(),
        pipeline: pipeline(),
        priority: Priority::Normal,
        idempotency_key: None,
        webhook: None,
        created_at: NOW,
    }
}

fn batches(name: &str, count: usize) -> Vec<NewBatch> {
    let batch = |n: usize| NewBatch {
        id: BatchId::generate(),
        pipeline: pipeline(),
        key: key(name),
        payload: RawValue::from_string(format!("[{n}]")).unwrap(),
        due: NOW,
    };
    (0..count).map(batch).collect()
}

async fn submit(ledger: &impl Ledger, batches: &[NewBatch]) -> RunId {
    submit_as(ledger, new_run(), batches).await
}

async fn submit_as(ledger: &impl Ledger, run: NewRun, batches: &[NewBatch]) -> RunId {
    assert_eq!(ledger.open_run(&run).await.unwrap(), Opened::New(()));
    ledger.append(run.id, batches).await.unwrap();
    ledger.accept(run.id, &[7; 32]).await.unwrap();
    run.id
}

async fn send_out(ledger: &impl Ledger, batches: &[NewBatch], attempt: u32) {
    let dispatched: Vec<_> = batches
        .iter()
        .map(|b| (b.id, Attempt::new(attempt)))
        .collect();
    ledger.record_out(&dispatched, NOW).await.unwrap();
}

fn judged(batch: &NewBatch, attempt: u32, verdict: Verdict) -> Judged {
    Judged {
        batch: batch.id,
        attempt: Attempt::new(attempt),
        worker: Some(worker()),
        took: Some(Duration::from_millis(1_500)),
        verdict,
    }
}

fn worker() -> Instance {
    Instance::from("worker-a".to_owned())
}

fn complete(rows: u64) -> Verdict {
    Verdict::Complete {
        rows,
        statistics: Statistics::from([("api_calls".to_owned(), 2)]),
        follow_ups: vec![],
    }
}

/// Completed, asking for one batch of another pipeline for each key.
fn asks_for(keys: &[&str]) -> Verdict {
    let follow_up = |name: &&str| FollowUp {
        pipeline: PipelineName::new("second.stage").unwrap(),
        key: key(name),
        payload: RawValue::from_string("1".into()).unwrap(),
    };
    Verdict::Complete {
        rows: 0,
        statistics: Statistics::new(),
        follow_ups: keys.iter().map(follow_up).collect(),
    }
}

fn retry(max_attempts: u32) -> Verdict {
    let backoff = Backoff::new(Duration::from_secs(10), Duration::from_mins(1));
    Verdict::Retry {
        error: "it's \"broken\"\n\u{1F4A5}".into(),
        after: None,
        policy: RetryPolicy {
            max_attempts,
            backoff,
        },
        random: 1.0,
    }
}

fn hold() -> Verdict {
    Verdict::Hold {
        reason: "quota".into(),
        after: Duration::from_secs(30),
    }
}

fn kill(reason: &str) -> Verdict {
    Verdict::Kill {
        reason: reason.into(),
        error: "no".into(),
    }
}

/// Settles one outcome now.
async fn settle(ledger: &impl Ledger, batch: &NewBatch, attempt: u32, verdict: Verdict) -> Settled {
    let outcome = judged(batch, attempt, verdict);
    let mut settled = ledger.settle(&[outcome], NOW).await.unwrap();
    assert_eq!(settled.len(), 1);
    settled.remove(0)
}

fn effects(settled: &[Settled]) -> Vec<Effect> {
    settled.iter().map(|s| s.effect).collect()
}

/// A run, after a look at everything.
async fn view(ledger: &impl Ledger, run: RunId) -> Run {
    audit(ledger).await;
    ledger.run(run).await.unwrap().expect("an accepted run")
}

async fn detail(ledger: &impl Ledger, batch: &NewBatch) -> BatchDetail {
    let detail = ledger.batch(batch.id).await.unwrap();
    detail.expect("a batch of an accepted run")
}

/// Compares every counter with the batches themselves.
async fn audit(ledger: &impl Ledger) {
    let mut pipelines: BTreeMap<PipelineName, (u64, u64)> = BTreeMap::new();
    for run in ledger.runs(None, None, 1_000).await.unwrap() {
        let b = run.batches;
        assert_eq!(b.accepted, b.pending + b.out + b.finished(), "{run:?}");
        assert_eq!(run.finished_at.is_some(), b.pending + b.out == 0, "{run:?}");
        let mut found = BatchCounts::default();
        for batch in ledger.batches(run.run, None, None, 10_000).await.unwrap() {
            let count = pipelines.entry(batch.pipeline).or_default();
            found.accepted += 1;
            match batch.state {
                State::Pending => {
                    found.pending += 1;
                    count.0 += 1;
                }
                State::Out => {
                    found.out += 1;
                    count.1 += 1;
                }
                State::Completed => found.completed += 1,
                State::Dead => found.dead += 1,
                State::Cancelled => found.cancelled += 1,
            }
        }
        assert_eq!(b, found, "{run:?}");
    }
    let pending: u64 = pipelines.values().map(|(pending, _)| pending).sum();
    assert_eq!(ledger.backlog().await.unwrap(), pending);
    let out: u64 = pipelines.values().map(|(_, out)| out).sum();
    assert_eq!(ledger.outs().await.unwrap().len() as u64, out);
    let counts: Vec<PipelineCounts> = pipelines
        .into_iter()
        .filter(|(_, counts)| *counts != (0, 0))
        .map(|(pipeline, (pending, out))| PipelineCounts {
            pipeline,
            pending,
            out,
        })
        .collect();
    assert_eq!(ledger.pipelines().await.unwrap(), counts);
}
