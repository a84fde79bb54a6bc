//! One pipeline: its window, and its keys in their turns.
//!
//! Deficit round robin: a key whose turn comes is credited with its weight, and each batch costs one. What the
//! credit does not cover waits for the next turn; what the window cuts short goes on at the front of the ring.
//! A key that has nothing due, is at its own limit or is parked leaves the ring and comes back at its end.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use shared::config::{PipelineConfig, Weight};
use shared::id::RunId;
use shared::name::{Key, PipelineName};

use super::demand::{Demand, Flow};
use super::dispatcher::{Dispatch, Read, Taken};
use super::key::{KeyState, More, Next};
use super::parks::Parks;
use super::places::Places;
use super::window::Window;
use crate::ledger::{Backlog, BacklogId, Page};

/// Fewest and most batches that are read ahead for one key.
const PAGE_MIN: u32 = 8;
const PAGE_MAX: u32 = 512;
/// How long to leave a backlog alone whose page held nothing new: its batches are out, with the news of them
/// still on its way, and reading on at once would only spin.
const STALE_PAGE_PAUSE: Duration = Duration::from_millis(50);

/// The state of one pipeline.
#[derive(Debug)]
pub(super) struct Pipeline {
    name: PipelineName,
    pub(super) window: Window,
    pub(super) demand: Demand,
    per_key: u32,
    weights: BTreeMap<Key, Weight>,
    keys: HashMap<Key, KeyState>,
    /// Keys that may have something to give, in turn. A key is in here exactly when its state says so.
    turns: VecDeque<Key>,
    /// Backlogs that become due later: one entry for each that says `Later`.
    timers: BTreeSet<(Timestamp, Key, RunId)>,
    parks: Parks,
}

/// Why a key's turn ended.
enum End {
    /// Nothing more now; something will give it a turn again.
    Over,
    /// Its credit is used up.
    Paid,
    /// The window or the wave is full, and it would have more.
    Full,
    /// A page is needed.
    Unread { run: RunId, shown: u32, wanted: u32 },
}

impl Pipeline {
    pub(super) fn new(name: &PipelineName, config: &PipelineConfig) -> Self {
        Self {
            name: name.clone(),
            window: Window::new(config),
            demand: Demand::new(config),
            per_key: config.max_in_flight_per_key.unwrap_or(u32::MAX),
            weights: config.weights.clone(),
            keys: HashMap::new(),
            turns: VecDeque::new(),
            timers: BTreeSet::new(),
            parks: Parks::default(),
        }
    }

    /// A batch of this key is out from before.
    pub(super) fn was_out(&mut self, key: Key) {
        self.window.out += 1;
        self.keys.entry(key).or_default().out += 1;
    }

    /// A backlog has something pending.
    pub(super) fn pending(&mut self, backlog: &Backlog, now: Timestamp) {
        let Backlog { id, priority, due } = backlog;
        let state = self.keys.entry(id.key.clone()).or_default();
        let change = state.pending(id.run, *priority, More::at(Some(*due), now));
        self.set_timer(&id.key, id.run, change);
        self.give_turn(&id.key);
    }

    /// A page of a backlog was read.
    pub(super) fn page(&mut self, read: &Read, page: Page, places: &Places, now: Timestamp) {
        let BacklogId { run, key, .. } = &read.backlog;
        let Some(state) = self.keys.get_mut(key) else {
            return;
        };
        let mut batches = page.batches;
        batches.retain(|batch| !places.has(batch.id));
        let mut more = More::at(page.more_due, now);
        if more == More::Due && batches.is_empty() {
            more = More::at(now.checked_add(STALE_PAGE_PAUSE).ok(), now);
        }
        if let Some(change) = state.page(*run, batches.into_iter(), more) {
            self.set_timer(key, *run, change);
        }
        self.give_turn(key);
        self.forget_if_idle(key);
    }

    /// Takes what may go out now, and says what has to be read before the next ones can be taken fairly.
    /// While demand trickles, keys that are `busy` downstream stay.
    pub(super) fn take(
        &mut self,
        now: Timestamp,
        limit: u32,
        busy: impl Fn(&Key) -> bool,
        places: &mut Places,
    ) -> Taken {
        let mut taken = Taken::default();
        let most = match self.demand.flow() {
            Flow::Open => self.per_key,
            Flow::Trickle => 1,
            Flow::Shut => return taken,
        };
        let trickles = self.demand.flow() == Flow::Trickle;
        let page = self.page_size();
        let mut room = self.window.room(now).min(limit);
        let mut unread = Vec::new();
        let mut lap = self.turns.len();
        while room > 0
            && let Some(key) = self.turns.pop_front()
        {
            lap -= 1;
            let held = self.parks.holds(&key, now) || trickles && busy(&key);
            let most = if held { 0 } else { most };
            match self.turn(&key, most, &mut room, places, &mut taken.batches) {
                End::Paid => self.turns.push_back(key),
                End::Full => self.turns.push_front(key),
                End::Unread { run, shown, wanted } => {
                    // Its share of the room stays free until the page is here.
                    room -= wanted;
                    let backlog = self.backlog(run, &key);
                    let limit = page.saturating_add(shown);
                    taken.reads.push(Read { backlog, limit });
                    unread.push(key);
                }
                End::Over => {
                    if let Some(state) = self.keys.get_mut(&key) {
                        state.end_turn();
                    }
                    self.forget_if_idle(&key);
                }
            }
            if lap == 0 {
                if !unread.is_empty() {
                    break; // Everybody had a turn; the next one begins with those whose pages are read.
                }
                lap = self.turns.len();
            }
        }
        for key in unread.into_iter().rev() {
            self.turns.push_front(key);
        }
        taken
    }

    /// One key's turn.
    fn turn(
        &mut self,
        key: &Key,
        most: u32,
        room: &mut u32,
        places: &mut Places,
        taken: &mut Vec<Dispatch>,
    ) -> End {
        let Some(state) = self.keys.get_mut(key) else {
            return End::Over;
        };
        state.credit(self.weights.get(key).copied().unwrap_or_default());
        loop {
            if state.out >= most {
                return End::Over;
            }
            let credit = state.affordable();
            if credit == 0 {
                return End::Paid;
            }
            if *room == 0 {
                return End::Full;
            }
            match state.next() {
                Next::Nothing => return End::Over,
                Next::Unread { run, shown } => {
                    let wanted = credit.min(most - state.out).min(*room);
                    return End::Unread { run, shown, wanted };
                }
                Next::Batch(priority, run, batch) => {
                    state.pay();
                    state.out += 1;
                    self.window.out += 1;
                    *room -= 1;
                    let backlog = BacklogId {
                        run,
                        pipeline: self.name.clone(),
                        key: key.clone(),
                    };
                    let dispatch = Dispatch {
                        backlog,
                        priority,
                        batch,
                    };
                    places.take(&dispatch);
                    taken.push(dispatch);
                }
            }
        }
    }

    /// A batch of the key is not out any more.
    pub(super) fn leave(&mut self, key: &Key) {
        self.window.out -= 1;
        if let Some(state) = self.keys.get_mut(key) {
            state.out -= 1;
        }
        self.give_turn(key);
        self.forget_if_idle(key);
    }

    /// One batch of this backlog is not unrecorded any more.
    pub(super) fn recorded(&mut self, key: &Key, run: RunId) {
        if let Some(state) = self.keys.get_mut(key) {
            state.recorded(run);
            self.forget_if_idle(key);
        }
    }

    /// Nothing of this run goes out any more. It looks at every key: it is an operator who asks.
    pub(super) fn drop_run(&mut self, run: RunId) {
        for (key, state) in &mut self.keys {
            if let More::Later(due) = state.drop_run(run) {
                self.timers.remove(&(due, key.clone(), run));
            }
        }
        self.keys.retain(|_, state| !state.is_idle());
    }

    /// The key stays until then, or for longer, if that was said before; a time that has passed lets it go on.
    pub(super) fn park(&mut self, key: &Key, until: Timestamp, now: Timestamp) {
        if until > now {
            self.parks.park(key.clone(), until);
        } else {
            self.parks.unpark(key);
            self.give_turn(key);
        }
    }

    /// So much waits in a pipeline that this one feeds.
    pub(super) fn downstream(&mut self, pipeline: &PipelineName, waiting: u64) {
        if self.demand.report(pipeline, waiting) {
            for (key, state) in &mut self.keys {
                if state.wants_turn() {
                    state.begin_turn();
                    self.turns.push_back(key.clone());
                }
            }
        }
    }

    /// Gives a turn to what is due.
    pub(super) fn wake(&mut self, now: Timestamp) {
        while let Some((due, ..)) = self.timers.first()
            && *due <= now
            && let Some((_, key, run)) = self.timers.pop_first()
        {
            if let Some(state) = self.keys.get_mut(&key) {
                state.due(run);
            }
            self.give_turn(&key);
        }
        while let Some(key) = self.parks.pop(now) {
            self.give_turn(&key);
        }
        self.window.wake(now);
    }

    /// When to wake it next.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let due = self.timers.first().map(|(due, ..)| *due);
        let times = [due, self.parks.next(), self.window.next_due()];
        times.into_iter().flatten().min()
    }

    /// Whether it has work of this key, pending or out.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether it has any work, pending or out.
    pub(super) fn is_idle(&self) -> bool {
        self.keys.is_empty()
    }

    /// A fair share of the window for each key that waits.
    fn page_size(&self) -> u32 {
        let keys = u32::try_from(self.turns.len() + 1).unwrap_or(u32::MAX);
        (2 * self.window.size() / keys).clamp(PAGE_MIN, PAGE_MAX)
    }

    fn backlog(&self, run: RunId, key: &Key) -> BacklogId {
        BacklogId {
            run,
            pipeline: self.name.clone(),
            key: key.clone(),
        }
    }

    fn set_timer(&mut self, key: &Key, run: RunId, (before, after): (More, More)) {
        if before == after {
            return;
        }
        if let More::Later(due) = before {
            self.timers.remove(&(due, key.clone(), run));
        }
        if let More::Later(due) = after {
            self.timers.insert((due, key.clone(), run));
        }
    }

    fn give_turn(&mut self, key: &Key) {
        if let Some(state) = self.keys.get_mut(key)
            && state.wants_turn()
        {
            state.begin_turn();
            self.turns.push_back(key.clone());
        }
    }

    fn forget_if_idle(&mut self, key: &Key) {
        if self.keys.get(key).is_some_and(KeyState::is_idle) {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
impl Pipeline {
    pub(super) fn heads(&self) -> usize {
        self.keys.values().map(KeyState::heads).sum()
    }

    pub(super) fn is_clean(&self) -> bool {
        self.keys.is_empty()
            && self.turns.is_empty()
            && self.timers.is_empty()
            && self.parks.next().is_none()
            && self.window.out == 0
    }
}
