//! What is out or about to be: each batch has a place in its windows until it is settled.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};

use super::dispatcher::Dispatch;

/// All places.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<BatchId, Place>);

/// The place of one batch.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) pipeline: PipelineName,
    pub(super) key: Key,
    /// The attempt before the one that is out; `None` for what was out before a restart.
    pub(super) after: Option<Attempt>,
    /// Whose page may still show it, because the ledger does not have it as out yet.
    pub(super) unrecorded: Option<RunId>,
    /// The ledger did not have it as out when it was last compared.
    missed: bool,
}

impl Places {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn has(&self, batch: BatchId) -> bool {
        self.0.contains_key(&batch)
    }

    /// For what was out before a restart.
    pub(super) fn keep(&mut self, batch: BatchId, pipeline: PipelineName, key: Key) {
        self.0.insert(
            batch,
            Place {
                pipeline,
                key,
                after: None,
                unrecorded: None,
                missed: false,
            },
        );
    }

    /// For what goes out now.
    pub(super) fn take(&mut self, dispatch: &Dispatch) {
        let Dispatch { backlog, batch, .. } = dispatch;
        self.0.insert(
            batch.id,
            Place {
                pipeline: backlog.pipeline.clone(),
                key: backlog.key.clone(),
                after: Some(batch.attempt),
                unrecorded: Some(backlog.run),
                missed: false,
            },
        );
    }

    /// Frees the place of this attempt, or of an earlier one. News is late sometimes: a later attempt that is
    /// out by now keeps its place.
    pub(super) fn settle(&mut self, batch: BatchId, attempt: Attempt) -> Option<Place> {
        self.free_if(batch, |after| after.is_none_or(|after| after < attempt))
    }

    /// Frees the place of this dispatch.
    pub(super) fn take_back(&mut self, dispatch: &Dispatch) -> Option<Place> {
        let batch = &dispatch.batch;
        self.free_if(batch.id, |after| after == Some(batch.attempt))
    }

    fn free_if(
        &mut self,
        batch: BatchId,
        is_meant: impl Fn(Option<Attempt>) -> bool,
    ) -> Option<Place> {
        let place = self.0.entry(batch);
        match place {
            Entry::Occupied(place) if is_meant(place.get().after) => Some(place.remove()),
            _ => None,
        }
    }

    /// The ledger has this attempt as out. Gives the place and whose page showed it until now.
    pub(super) fn recorded(&mut self, batch: BatchId, attempt: Attempt) -> Option<(&Place, RunId)> {
        let place = self.0.get_mut(&batch)?;
        if place.after.is_none_or(|after| after.next() != attempt) {
            return None; // A later attempt's place; that one's own recording is still to come.
        }
        let run = place.unrecorded.take()?;
        Some((place, run))
    }

    /// Compares with what the ledger has as out, and gives the recorded ones that it did not have, this time
    /// and the time before: news of them was lost. Once is not enough, because news may be on its way.
    pub(super) fn compare(&mut self, outs: &HashSet<BatchId>) -> Vec<(BatchId, Place)> {
        let is_lost = |batch: &BatchId, place: &mut Place| {
            let missing = place.unrecorded.is_none() && !outs.contains(batch);
            std::mem::replace(&mut place.missed, missing) && missing
        };
        self.0.extract_if(is_lost).collect()
    }
}
