//! Keys that stay until a limit has room for them again. They are out of the round of turns, so they hold no
//! place in the window and cost nothing while they wait.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use shared::name::Key;

/// The parked keys of one pipeline.
#[derive(Debug, Default)]
pub(super) struct Parks {
    until: HashMap<Key, Timestamp>,
    order: BTreeSet<(Timestamp, Key)>,
}

impl Parks {
    /// Parks a key until then, or for longer, if it was for longer: several limits may hold it.
    pub(super) fn park(&mut self, key: Key, until: Timestamp) {
        if self.holds(&key, until) {
            return;
        }
        self.unpark(&key);
        self.order.insert((until, key.clone()));
        self.until.insert(key, until);
    }

    /// Ends a key's parking.
    pub(super) fn unpark(&mut self, key: &Key) {
        if let Some((key, until)) = self.until.remove_entry(key) {
            self.order.remove(&(until, key));
        }
    }

    pub(super) fn holds(&self, key: &Key, now: Timestamp) -> bool {
        self.until.get(key).is_some_and(|until| *until > now)
    }

    /// A key whose time has come; it is parked no more.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<Key> {
        let (until, _) = self.order.first()?;
        if *until > now {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        self.until.remove(&key);
        Some(key)
    }

    /// When the next key wakes.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(until, _)| *until)
    }
}
