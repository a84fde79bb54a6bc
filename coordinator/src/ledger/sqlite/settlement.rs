//! Settlement's part of the ledger in SQLite: read the batches of a group, decide each by the transition
//! table, write what changed, all in one transaction.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use shared::outcome::Statistics;
use sqlx::SqliteConnection;

use super::row::{Cells, state_number};
use super::submission::{insert_batches, signed};
use super::{SqliteLedger, id_array, push_hex};
use crate::ledger::transition::{self, Judged, State, Stored, Update, Verdict};
use crate::ledger::{Backlog, BacklogId, Effect, LedgerError, NewBatch, Settled, SettlementLedger};
use crate::run::Priority;

#[async_trait]
impl SettlementLedger for SqliteLedger {
    async fn settle(
        &self,
        outcomes: &[Judged],
        now: Timestamp,
    ) -> Result<Vec<Settled>, LedgerError> {
        let mut transaction = self.begin().await?;
        let mut group = Group {
            known: read(&mut transaction, outcomes).await?,
            ..Group::default()
        };
        let settled = outcomes
            .iter()
            .map(|outcome| group.settle(outcome, now))
            .collect();
        write_batches(&mut transaction, &group.updates).await?;
        for (run, change) in &group.runs {
            insert_batches(&mut transaction, *run, &change.follow_ups).await?;
            write_run(&mut transaction, *run, change, now).await?;
        }
        transaction.commit().await?;
        Ok(settled)
    }
}

/// One group of outcomes while it is being settled.
#[derive(Default)]
struct Group {
    /// The batches as they stand after the outcomes so far: a group may hold two for the same batch.
    known: HashMap<BatchId, Known>,
    /// What to write, the last one for each batch.
    updates: HashMap<BatchId, Update>,
    /// What changes in the runs.
    runs: BTreeMap<RunId, RunChange>,
}

struct Known {
    backlog: BacklogId,
    priority: Priority,
    stored: Stored,
}

#[derive(Default)]
struct RunChange {
    /// By how much each state's count changes.
    counts: BTreeMap<i64, i64>,
    retries: i64,
    rows: u64,
    statistics: Statistics,
    follow_ups: Vec<NewBatch>,
}

impl Group {
    fn settle(&mut self, outcome: &Judged, now: Timestamp) -> Settled {
        let nothing = |effect| Settled {
            batch: outcome.batch,
            effect,
            backlogs: vec![],
        };
        let Some(known) = self.known.get_mut(&outcome.batch) else {
            return nothing(Effect::Unknown);
        };
        let change = transition::settle(&known.stored, outcome, now);
        let Some(update) = change.store else {
            return nothing(change.effect);
        };
        let run = self.runs.entry(known.backlog.run).or_default();
        *run.counts
            .entry(state_number(known.stored.state))
            .or_default() -= 1;
        *run.counts
            .entry(state_number(update.stored.state))
            .or_default() += 1;
        known.stored = update.stored;
        let mut backlogs = Vec::new();
        match &outcome.verdict {
            Verdict::Complete {
                rows,
                statistics,
                follow_ups,
            } => {
                run.rows += rows;
                for (name, count) in statistics {
                    *run.statistics.entry(name.clone()).or_default() += count;
                }
                for follow_up in follow_ups {
                    run.follow_ups.push(NewBatch {
                        id: BatchId::generate(),
                        pipeline: follow_up.pipeline.clone(),
                        key: follow_up.key.clone(),
                        payload: follow_up.payload.clone(),
                        due: now,
                    });
                }
                backlogs = follow_up_backlogs(known, follow_ups, now);
            }
            Verdict::Retry { .. } if change.effect == Effect::Again => run.retries += 1,
            _ => {}
        }
        if change.effect == Effect::Again {
            backlogs.push(Backlog {
                id: known.backlog.clone(),
                priority: known.priority,
                due: update.due,
            });
        }
        self.updates.insert(outcome.batch, update);
        Settled {
            batch: outcome.batch,
            effect: change.effect,
            backlogs,
        }
    }
}

/// Each backlog that the follow-ups fall into, once.
fn follow_up_backlogs(
    known: &Known,
    follow_ups: &[shared::outcome::FollowUp],
    now: Timestamp,
) -> Vec<Backlog> {
    let mut backlogs: Vec<Backlog> = Vec::new();
    for follow_up in follow_ups {
        let id = BacklogId {
            run: known.backlog.run,
            pipeline: follow_up.pipeline.clone(),
            key: follow_up.key.clone(),
        };
        // Follow-ups of one backlog stand together, so looking at the last one is enough to stay short.
        if backlogs.last().is_none_or(|last| last.id != id) {
            backlogs.push(Backlog {
                id,
                priority: known.priority,
                due: now,
            });
        }
    }
    backlogs
}

async fn read(
    connection: &mut SqliteConnection,
    outcomes: &[Judged],
) -> Result<HashMap<BatchId, Known>, LedgerError> {
    let rows = sqlx::query(
        "SELECT b.id, b.run, b.pipeline, b.key, b.state, b.attempt, b.failures, b.releases, r.priority \
         FROM json_each(?) j CROSS JOIN batches b ON b.id = unhex(j.value) CROSS JOIN runs r ON r.id = b.run",
    )
    .bind(id_array(outcomes.iter().map(|outcome| &outcome.batch)))
    .fetch_all(connection)
    .await?;
    let mut known = HashMap::with_capacity(rows.len());
    for row in &rows {
        let cells = Cells {
            table: "batches",
            row,
        };
        let backlog = BacklogId {
            run: cells.run_id("run")?,
            pipeline: cells.pipeline("pipeline")?,
            key: cells.key("key")?,
        };
        known.insert(
            cells.batch_id("id")?,
            Known {
                backlog,
                priority: cells.word("priority")?,
                stored: cells.stored()?,
            },
        );
    }
    Ok(known)
}

/// Writes states, counts and errors of the whole group in one statement.
async fn write_batches(
    connection: &mut SqliteConnection,
    updates: &HashMap<BatchId, Update>,
) -> Result<(), LedgerError> {
    let mut json = String::from("[");
    for (id, update) in updates {
        json.push_str(if json.len() > 1 { ",[\"" } else { "[\"" });
        push_hex(&mut json, id.as_bytes());
        let Stored {
            state,
            attempt,
            failures,
            releases,
            called_off: _,
        } = update.stored;
        let due = update.due.as_millisecond();
        // Writing to a String cannot fail.
        let _ = write!(
            json,
            "\",{},{attempt},{failures},{releases},{due},",
            state_number(state)
        );
        let texts = serde_json::json!([update.reason, update.error]).to_string();
        json.push_str(texts.trim_start_matches('['));
    }
    json.push(']');
    sqlx::query(
        "UPDATE batches SET state = v.value ->> 1, attempt = v.value ->> 2, failures = v.value ->> 3, \
         releases = v.value ->> 4, due = v.value ->> 5, reason = v.value ->> 6, error = v.value ->> 7 \
         FROM json_each(?) v WHERE batches.id = unhex(v.value ->> 0)",
    )
    .bind(json)
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_run(
    connection: &mut SqliteConnection,
    run: RunId,
    change: &RunChange,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let count = |state| {
        change
            .counts
            .get(&state_number(state))
            .copied()
            .unwrap_or_default()
    };
    let follow_ups = signed(change.follow_ups.len());
    // A run is completed when nothing of it is pending or out any more. A late completion may ask for
    // follow-ups: then it runs again.
    sqlx::query(
        "UPDATE runs SET accepted = accepted + ?2, pending = pending + ?3, out = out + ?4, \
         completed = completed + ?5, dead = dead + ?6, cancelled = cancelled + ?7, \
         retries = retries + ?8, rows = rows + ?9, \
         state = iif(state = 'cancelled', state, iif(pending + ?3 + out + ?4 = 0, 'completed', 'running')), \
         finished_at = iif(pending + ?3 + out + ?4 = 0, coalesce(finished_at, ?10), NULL) \
         WHERE id = ?1",
    )
    .bind(run.as_bytes().as_slice())
    .bind(follow_ups)
    .bind(count(State::Pending) + follow_ups)
    .bind(count(State::Out))
    .bind(count(State::Completed))
    .bind(count(State::Dead))
    .bind(count(State::Cancelled))
    .bind(change.retries)
    .bind(i64::try_from(change.rows).unwrap_or(i64::MAX))
    .bind(now.as_millisecond())
    .execute(&mut *connection)
    .await?;
    for (name, value) in &change.statistics {
        sqlx::query(
            "INSERT INTO run_statistics (run, name, value) VALUES (?, ?, ?) \
             ON CONFLICT (run, name) DO UPDATE SET value = value + excluded.value",
        )
        .bind(run.as_bytes().as_slice())
        .bind(name)
        .bind(i64::try_from(*value).unwrap_or(i64::MAX))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
