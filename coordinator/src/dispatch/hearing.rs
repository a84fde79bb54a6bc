//! What news means for the dispatcher: notices of the other stages, answers of the stage's own tasks.

use jiff::Timestamp;
use shared::id::{BatchId, RunId};
use shared::name::Attempt;

use super::dispatcher::{Dispatch, Dispatcher};
use crate::ledger::{Backlog, Effect};
use crate::notice::Notice;

/// What the publishing and recording tasks answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// A publishing task has room for another wave.
    Room,
    /// These could not be published, or do not wait any more: they were settled since they were read, or
    /// their run was stopped.
    Returned(Vec<Dispatch>),
    /// These are recorded as out.
    Recorded(Vec<(BatchId, Attempt)>),
}

/// Takes in a notice. Gives the run whose backlogs are to be read now, and told with [`add`].
pub(super) fn hear(dispatcher: &mut Dispatcher, notice: Notice, now: Timestamp) -> Option<RunId> {
    match notice {
        Notice::Accepted(run) => return Some(run),
        Notice::Settled(settled) => {
            for settled in settled {
                // A duplicate says that the batch is final, so nothing of it can be out; neither can it be when
                // it is pending. Otherwise a stale outcome says that a later attempt is out.
                let is_over = match settled.effect {
                    Effect::Stale => !settled.backlogs.is_empty(),
                    Effect::Unknown => false,
                    _ => true,
                };
                if is_over {
                    dispatcher.settled(settled.batch, settled.attempt);
                }
                add(dispatcher, &settled.backlogs, now);
            }
        }
        Notice::Slots(slots) => dispatcher.slots(&slots),
        Notice::Pending(backlogs) => add(dispatcher, &backlogs, now),
        Notice::Stopped(run) => dispatcher.drop_run(run),
        Notice::Changed(run) => {
            dispatcher.drop_run(run);
            return Some(run);
        }
        Notice::PipelinePaused(pipeline, paused) => dispatcher.pause(&pipeline, paused),
        Notice::Parked {
            pipelines,
            key,
            until,
        } => {
            for pipeline in &pipelines {
                dispatcher.park(pipeline, key.as_ref(), until, now);
            }
        }
    }
    None
}

/// Takes in an answer.
pub(super) fn hear_answer(dispatcher: &mut Dispatcher, answer: Answer, now: Timestamp) {
    match answer {
        Answer::Room => {} // The stage looks again after each answer.
        Answer::Recorded(attempts) => dispatcher.recorded(&attempts),
        Answer::Returned(batches) => {
            for dispatch in &batches {
                dispatcher.returned(dispatch, now);
            }
        }
    }
}

/// Something is pending in each of these.
pub(super) fn add(dispatcher: &mut Dispatcher, backlogs: &[Backlog], now: Timestamp) {
    for backlog in backlogs {
        if !dispatcher.pending(backlog, now) {
            let pipeline = &backlog.id.pipeline;
            tracing::warn!(%pipeline, run.id = %backlog.id.run, "batches wait for a pipeline that is not configured");
        }
    }
}
