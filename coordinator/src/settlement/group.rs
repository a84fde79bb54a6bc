//! Outcomes on their way through one transaction, and the messages that they came in.

use std::collections::BTreeMap;

use crate::ledger::{Effect, Judged, LedgerError, Settled};

/// Most outcomes of one transaction, and most bytes, but for the last message's: what they ask for is written in
/// the same transaction, at several times their size.
const OUTCOMES: usize = 4_096;
const BYTES: usize = 16 * 1024 * 1024;
/// Reasons of messages that are put aside.
pub(super) const UNDECODABLE: &str = "undecodable_outcomes";
const UNKNOWN_BATCH: &str = "unknown_batch";
const DAMAGED: &str = "damaged_ledger";

/// Outcomes that are settled together, and the messages that they came in.
pub(super) struct Group<M> {
    pub(super) outcomes: Vec<Judged>,
    pub(super) messages: Vec<M>,
    /// For each outcome the index of its message.
    came_in: Vec<usize>,
    strangers: BTreeMap<usize, Strange>,
    bytes: usize,
}

/// Why a message is put aside: in one closed word, and for a person.
type Strange = (&'static str, String);

/// A message that cannot be read, or that holds an outcome that cannot be settled.
#[derive(Debug, PartialEq)]
pub(super) struct Stranger<'a, M> {
    pub(super) message: &'a M,
    /// In one closed word.
    pub(super) reason: &'static str,
    /// For a person.
    pub(super) error: String,
}

impl<M> Default for Group<M> {
    fn default() -> Self {
        Self {
            outcomes: Vec::new(),
            messages: Vec::new(),
            came_in: Vec::new(),
            strangers: BTreeMap::new(),
            bytes: 0,
        }
    }
}

impl<M> Group<M> {
    /// Whether what comes next has to wait for another group.
    pub(super) fn is_full(&self) -> bool {
        self.outcomes.len() >= OUTCOMES || self.bytes >= BYTES
    }

    /// Adds a message of so many bytes.
    pub(super) fn add(&mut self, message: M, bytes: usize, outcomes: impl Iterator<Item = Judged>) {
        let index = self.messages.len();
        self.bytes += bytes;
        self.messages.push(message);
        for outcome in outcomes {
            self.outcomes.push(outcome);
            self.came_in.push(index);
        }
    }

    /// Adds a message that holds no outcomes, or none to be believed.
    pub(super) fn add_stranger(
        &mut self,
        message: M,
        bytes: usize,
        reason: &'static str,
        error: String,
    ) {
        let strange = (reason, error);
        self.strangers.insert(self.messages.len(), strange);
        self.add(message, bytes, std::iter::empty());
    }

    /// Messages that are done, and those that hold no outcomes, or one of an unknown or damaged batch.
    pub(super) fn sort(
        &self,
        settled: &[Result<Settled, LedgerError>],
    ) -> (Vec<&M>, Vec<Stranger<'_, M>>) {
        let mut strange = self.strangers.clone();
        for ((judged, index), settled) in self.outcomes.iter().zip(&self.came_in).zip(settled) {
            let (reason, problem) = match settled {
                Err(error) => (DAMAGED, error.to_string()),
                Ok(settled) if settled.effect == Effect::Unknown => {
                    (UNKNOWN_BATCH, "the ledger knows no such attempt".to_owned())
                }
                Ok(_) => continue,
            };
            let Judged { batch, attempt, .. } = judged;
            strange.entry(*index).or_insert_with(|| {
                (
                    reason,
                    format!("batch {batch}, attempt {attempt}: {problem}"),
                )
            });
        }
        let (mut done, mut strangers) = (Vec::new(), Vec::new());
        for (index, message) in self.messages.iter().enumerate() {
            match strange.remove(&index) {
                Some((reason, error)) => strangers.push(Stranger {
                    message,
                    reason,
                    error,
                }),
                None => done.push(message),
            }
        }
        (done, strangers)
    }
}

#[cfg(test)]
mod tests {
    use shared::id::BatchId;
    use shared::name::Attempt;

    use super::*;
    use crate::ledger::Verdict;

    fn judged() -> Judged {
        Judged {
            batch: BatchId::generate(),
            attempt: Attempt::new(1),
            worker: None,
            took: None,
            verdict: Verdict::Lose,
        }
    }

    fn settled(judged: &Judged, effect: Effect) -> Settled {
        Settled {
            batch: judged.batch,
            attempt: judged.attempt,
            effect,
            backlogs: vec![],
        }
    }

    #[test]
    fn a_group_is_full_by_outcomes_or_by_bytes() {
        let mut group = Group::default();
        group.add("large", BYTES - 1, [judged()].into_iter());
        assert!(!group.is_full());
        group.add("small", 1, [judged()].into_iter());
        assert!(group.is_full());

        let mut group = Group::default();
        let judged = judged();
        group.add("one", 10, std::iter::repeat_n(judged.clone(), OUTCOMES - 1));
        assert!(!group.is_full());
        group.add("other", 10, [judged].into_iter());
        assert!(group.is_full());
    }

    #[test]
    fn a_message_with_a_stranger_is_put_aside_once() {
        let mut group = Group::default();
        group.add("fine", 10, [judged(), judged()].into_iter());
        group.add("empty", 10, std::iter::empty());
        group.add("unknown", 10, [judged(), judged(), judged()].into_iter());
        group.add("damaged", 10, [judged()].into_iter());
        group.add_stranger("undecodable", 10, UNDECODABLE, "no JSON".into());
        let damage = || LedgerError::Damaged {
            table: "batches",
            column: "state",
            value: "9".into(),
        };
        let answers: Vec<_> = group
            .outcomes
            .iter()
            .zip([0, 1, 2, 3, 4, 5])
            .map(|(judged, n)| match n {
                3 | 4 => Ok(settled(judged, Effect::Unknown)),
                5 => Err(damage()),
                _ => Ok(settled(judged, Effect::Completed)),
            })
            .collect();
        let (done, strangers) = group.sort(&answers);
        assert_eq!(done, [&"fine", &"empty"]);
        let found: Vec<_> = strangers.iter().map(|s| (*s.message, s.reason)).collect();
        assert_eq!(
            found,
            [
                ("unknown", UNKNOWN_BATCH),
                ("damaged", DAMAGED),
                ("undecodable", UNDECODABLE)
            ]
        );
        assert!(
            strangers[0]
                .error
                .contains(&group.outcomes[3].batch.to_string())
        );
        assert!(strangers[1].error.contains("batches.state"));
    }
}
