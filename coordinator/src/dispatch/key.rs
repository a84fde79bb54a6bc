//! One key in one pipeline: which of its backlogs goes first, and the first batches of each.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use shared::id::RunId;

use crate::ledger::PendingBatch;
use crate::run::Priority;

/// What the dispatcher knows of one key.
#[derive(Debug, Default)]
pub(super) struct KeyState {
    pub(super) out: u32,
    pub(super) has_turn: bool,
    /// Highest priority first, then oldest run (ids sort by time).
    pub(super) backlogs: BTreeMap<(Reverse<Priority>, RunId), Heads>,
}

/// The first batches of one backlog.
#[derive(Debug, Default)]
pub(super) struct Heads {
    pub(super) batches: VecDeque<PendingBatch>,
    /// When the ledger has more to read.
    pub(super) more_due: Option<Timestamp>,
    /// A read is under way; what arrived meanwhile is noted in `more_due`.
    pub(super) reading: bool,
    /// Batches taken from here whose attempt the ledger has not recorded: a page shows them again.
    pub(super) unrecorded: u32,
}

/// What a key has to give.
pub(super) enum Next {
    Batch(Priority, RunId, PendingBatch),
    /// A page has to be read first.
    Unread,
    Nothing,
}

impl KeyState {
    /// The first batch of the first backlog that has something due.
    pub(super) fn next(&mut self, now: Timestamp) -> Next {
        for ((Reverse(priority), run), heads) in &mut self.backlogs {
            if let Some(batch) = heads.batches.pop_front() {
                heads.unrecorded += 1;
                return Next::Batch(*priority, *run, batch);
            }
            if heads.reading {
                return Next::Nothing; // The page gives the key its turn back.
            }
            if heads.more_due.is_some_and(|due| due <= now) {
                return Next::Unread;
            }
        }
        Next::Nothing
    }

    /// The read that [`Self::next`] needs.
    pub(super) fn next_read(&mut self, now: Timestamp, page: u32) -> NextRead {
        for ((_, run), heads) in &mut self.backlogs {
            if !heads.batches.is_empty() {
                return NextRead::InMemory;
            }
            if heads.reading {
                return NextRead::Nothing;
            }
            if heads.more_due.is_some_and(|due| due <= now) {
                heads.reading = true;
                heads.more_due = None;
                return NextRead::Page(*run, page + heads.unrecorded);
            }
        }
        NextRead::Nothing
    }
}

/// What has to be read before a key can give something.
pub(super) enum NextRead {
    Page(RunId, u32),
    InMemory,
    Nothing,
}

impl Heads {
    pub(super) fn is_spent(&self) -> bool {
        self.batches.is_empty() && self.more_due.is_none() && !self.reading && self.unrecorded == 0
    }
}
