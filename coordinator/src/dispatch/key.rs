//! One key in one pipeline: which of its backlogs goes first, and the first batches of each.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};

use jiff::Timestamp;
use shared::config::Weight;
use shared::id::RunId;

use crate::ledger::PendingBatch;
use crate::run::Priority;

/// What the dispatcher knows of one key.
#[derive(Debug, Default)]
pub(super) struct KeyState {
    /// How many of its batches are out.
    pub(super) out: u32,
    /// In tenths of a batch, what it may take this turn; `None` when it has no turn.
    turn: Option<u32>,
    backlogs: HashMap<RunId, Heads>,
    /// Those with something to give or to read: highest priority first, then oldest run (ids sort by time).
    ready: BTreeSet<(Reverse<Priority>, RunId)>,
}

/// The first batches of one backlog.
#[derive(Debug)]
struct Heads {
    priority: Priority,
    batches: VecDeque<PendingBatch>,
    more: More,
    /// Batches taken from here whose attempt the ledger has not recorded: a page shows them again.
    unrecorded: u32,
}

/// What the ledger has beyond the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    /// Nothing that anybody told of.
    Nothing,
    /// A page to read.
    Due,
    /// A page to read, but not before then.
    Later(Timestamp),
}

/// What a key has to give.
pub(super) enum Next {
    /// This one goes next.
    Batch(Priority, RunId, PendingBatch),
    /// A page has to be read first, of this run; so many batches that went out already are `shown` on it.
    Unread { run: RunId, shown: u32 },
    /// Nothing that is due.
    Nothing,
}

impl More {
    pub(super) fn at(due: Option<Timestamp>, now: Timestamp) -> Self {
        match due {
            None => Self::Nothing,
            Some(due) if due <= now => Self::Due,
            Some(due) => Self::Later(due),
        }
    }

    fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Due, _) | (_, Self::Due) => Self::Due,
            (Self::Later(one), Self::Later(other)) => Self::Later(one.min(other)),
            (Self::Nothing, more) | (more, Self::Nothing) => more,
        }
    }
}

/// Turns: [`super::pipeline`] says how keys take them.
impl KeyState {
    /// Whether it would have something to do with a turn that it does not have yet.
    pub(super) fn wants_turn(&self) -> bool {
        self.turn.is_none() && !self.ready.is_empty()
    }

    pub(super) fn begin_turn(&mut self) {
        self.turn.get_or_insert(0);
    }

    /// What is left of its credit is gone: who has nothing to send saves nothing up.
    pub(super) fn end_turn(&mut self) {
        self.turn = None;
    }

    /// Adds its weight to what it may take, unless the turn before was cut short.
    pub(super) fn credit(&mut self, weight: Weight) {
        let credit = self.turn.get_or_insert(0);
        if *credit < Weight::BATCH {
            *credit += weight.tenths();
        }
    }

    /// Batches that it may still take in this turn.
    pub(super) fn affordable(&self) -> u32 {
        self.turn.unwrap_or_default() / Weight::BATCH
    }

    pub(super) fn pay(&mut self) {
        self.turn = self.turn.map(|credit| credit.saturating_sub(Weight::BATCH));
    }
}

/// Backlogs.
impl KeyState {
    /// The first batch of the first backlog that has something due. It counts as unrecorded.
    pub(super) fn next(&mut self) -> Next {
        while let Some(&first) = self.ready.first() {
            let (Reverse(priority), run) = first;
            if let Some(heads) = self.backlogs.get_mut(&run) {
                if let Some(batch) = heads.batches.pop_front() {
                    heads.unrecorded += 1;
                    if !heads.is_ready() {
                        self.ready.remove(&first);
                    }
                    return Next::Batch(priority, run, batch);
                }
                if heads.more == More::Due {
                    return Next::Unread {
                        run,
                        shown: heads.unrecorded,
                    };
                }
            }
            self.ready.remove(&first);
        }
        Next::Nothing
    }

    /// Something is pending. Gives what has changed about when to look at it.
    pub(super) fn pending(&mut self, run: RunId, priority: Priority, more: More) -> (More, More) {
        let heads = self.backlogs.entry(run).or_insert_with(|| Heads {
            priority,
            batches: VecDeque::new(),
            more: More::Nothing,
            unrecorded: 0,
        });
        if !heads.is_ready() && heads.more == More::Nothing {
            // Nothing is known but what is being recorded: the news decides where it stands.
            heads.priority = priority;
        }
        let before = heads.more;
        heads.more = before.sooner(more);
        let after = heads.more;
        self.sort(run);
        (before, after)
    }

    /// A page was read. Gives what has changed about when to look again; `None` when nobody waits for it.
    pub(super) fn page(
        &mut self,
        run: RunId,
        batches: impl Iterator<Item = PendingBatch>,
        more: More,
    ) -> Option<(More, More)> {
        let heads = self.backlogs.get_mut(&run)?;
        heads.batches.extend(batches);
        let before = std::mem::replace(&mut heads.more, more);
        self.sort(run);
        self.forget_if_spent(run);
        Some((before, more))
    }

    /// The time has come that a `Later` named.
    pub(super) fn due(&mut self, run: RunId) {
        if let Some(heads) = self.backlogs.get_mut(&run) {
            heads.more = More::Due;
            self.sort(run);
        }
    }

    /// One batch of this run is not unrecorded any more.
    pub(super) fn recorded(&mut self, run: RunId) {
        if let Some(heads) = self.backlogs.get_mut(&run) {
            heads.unrecorded = heads.unrecorded.saturating_sub(1);
            self.forget_if_spent(run);
        }
    }

    /// Nothing of this run goes out any more. Gives when its next page would have been read.
    pub(super) fn drop_run(&mut self, run: RunId) -> More {
        let Some(heads) = self.backlogs.get_mut(&run) else {
            return More::Nothing;
        };
        heads.batches = VecDeque::new();
        let more = std::mem::replace(&mut heads.more, More::Nothing);
        self.sort(run);
        self.forget_if_spent(run);
        more
    }

    /// Nothing out, nothing pending, no turn: not worth remembering.
    pub(super) fn is_idle(&self) -> bool {
        self.out == 0 && self.backlogs.is_empty() && self.turn.is_none()
    }

    /// Batches in memory.
    #[cfg(test)]
    pub(super) fn heads(&self) -> usize {
        self.backlogs
            .values()
            .map(|heads| heads.batches.len())
            .sum()
    }

    fn sort(&mut self, run: RunId) {
        if let Some(heads) = self.backlogs.get(&run) {
            let place = (Reverse(heads.priority), run);
            if heads.is_ready() {
                self.ready.insert(place);
            } else {
                self.ready.remove(&place);
            }
        }
    }

    fn forget_if_spent(&mut self, run: RunId) {
        if self.backlogs.get(&run).is_some_and(Heads::is_spent) {
            self.backlogs.remove(&run);
        }
    }
}

impl Heads {
    fn is_ready(&self) -> bool {
        !self.batches.is_empty() || self.more == More::Due
    }

    fn is_spent(&self) -> bool {
        self.batches.is_empty() && self.more == More::Nothing && self.unrecorded == 0
    }
}
