//! Webhooks that are due, and whose turn it is. Pure. A receiver gets so many calls at a time and no more; one
//! that does not answer is overtaken by the others.

use std::collections::{HashMap, HashSet, VecDeque};

use shared::id::RunId;

use super::receivers::Receiver;
use crate::ledger::Webhook;

/// Webhooks that wait, and calls that are under way.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<(Receiver, Webhook)>,
    calling: HashSet<RunId>,
    busy: HashMap<Receiver, usize>,
    /// Receivers of calls that ended since the queue was filled last.
    answering: HashSet<Receiver>,
    most: usize,
    most_per_receiver: usize,
}

impl Queue {
    pub(super) fn new(most: usize, most_per_receiver: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            calling: HashSet::new(),
            busy: HashMap::new(),
            answering: HashSet::new(),
            most,
            most_per_receiver,
        }
    }

    /// How many calls are under way: due, and not to be called.
    pub(super) fn calling(&self) -> usize {
        self.calling.len()
    }

    /// Replaces what waits by what is due now. When there is more than that (`is_partial`), gives back those
    /// whose receiver has not answered since the last time: others may be hidden behind them.
    pub(super) fn refill(&mut self, due: Vec<Webhook>, is_partial: bool) -> Vec<Webhook> {
        self.waiting.clear();
        let mut stuck = Vec::new();
        for webhook in due {
            if self.calling.contains(&webhook.run.run) {
                continue;
            }
            let receiver = Receiver::of(&webhook.url);
            if is_partial && !self.has_room(&receiver) && !self.answering.contains(&receiver) {
                stuck.push(webhook);
            } else {
                self.waiting.push_back((receiver, webhook));
            }
        }
        self.answering.clear();
        stuck
    }

    /// The next one to call, if there is room.
    pub(super) fn next(&mut self) -> Option<Webhook> {
        if self.calling.len() >= self.most {
            return None;
        }
        let mut waiting = self.waiting.iter();
        let position = waiting.position(|(receiver, _)| self.has_room(receiver))?;
        let (receiver, webhook) = self.waiting.remove(position)?;
        self.calling.insert(webhook.run.run);
        *self.busy.entry(receiver).or_default() += 1;
        Some(webhook)
    }

    /// A call has ended, and the ledger knows.
    pub(super) fn ended(&mut self, webhook: &Webhook) {
        if !self.calling.remove(&webhook.run.run) {
            return;
        }
        let receiver = Receiver::of(&webhook.url);
        if let Some(busy) = self.busy.get_mut(&receiver) {
            *busy -= 1;
            if *busy == 0 {
                self.busy.remove(&receiver);
            }
        }
        self.answering.insert(receiver);
    }

    /// Whether everything that was filled in is being called.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn has_room(&self, receiver: &Receiver) -> bool {
        self.busy.get(receiver).copied().unwrap_or_default() < self.most_per_receiver
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use shared::name::PipelineName;

    use super::*;
    use crate::run::{BatchCounts, Priority, Run, RunState};

    fn webhook(host: &str) -> Webhook {
        let run = Run {
            run: RunId::generate(),
            pipeline: PipelineName::new("a").unwrap(),
            state: RunState::Completed,
            priority: Priority::Normal,
            batches: BatchCounts::default(),
            retries: 0,
            rows: 0,
            statistics: BTreeMap::new(),
            created_at: Timestamp::UNIX_EPOCH,
            finished_at: None,
        };
        Webhook {
            run,
            url: format!("https://{host}/x"),
            failures: 0,
        }
    }

    fn webhooks(host: &str, count: usize) -> Vec<Webhook> {
        (0..count).map(|_| webhook(host)).collect()
    }

    fn called(queue: &mut Queue) -> Vec<Webhook> {
        std::iter::from_fn(|| queue.next()).collect()
    }

    #[test]
    fn each_receiver_gets_its_calls_and_all_together_no_more_than_allowed() {
        let mut queue = Queue::new(5, 2);
        let due = ["a", "b", "c", "d"].map(|host| webhooks(host, 3)).concat();
        assert_eq!(queue.refill(due.clone(), false), []);
        let calls = called(&mut queue);
        let hosts: Vec<Receiver> = calls.iter().map(|call| Receiver::of(&call.url)).collect();
        let expected =
            ["a", "a", "b", "b", "c"].map(|host| Receiver::of(&format!("https://{host}")));
        assert_eq!(hosts, expected);
        // What is being called stays due until it has ended, and is not called twice.
        assert_eq!(queue.refill(due, false), []);
        assert_eq!(queue.next(), None);
        queue.ended(&calls[0]);
        assert_eq!(called(&mut queue).len(), 1);
        assert_eq!(queue.calling(), 5);
    }

    #[test]
    fn who_does_not_answer_steps_back_when_others_may_be_hidden() {
        let mut queue = Queue::new(10, 2);
        let due = webhooks("slow", 6);
        assert_eq!(queue.refill(due.clone(), true), [], "nobody was called yet");
        let calls = called(&mut queue);
        assert_eq!(queue.refill(due.clone(), false), [], "nobody is hidden");
        assert_eq!(queue.refill(due.clone(), true), due[2..]);
        assert!(queue.is_empty());

        // One that answers, however slowly, keeps its place.
        queue.ended(&calls[0]);
        let next = queue.refill(due[1..].to_vec(), true);
        assert_eq!((next, called(&mut queue).len()), (vec![], 1));
        assert_eq!(queue.refill(due[1..].to_vec(), true), due[3..]);
    }
}
