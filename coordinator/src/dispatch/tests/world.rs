//! The dispatcher and everything around it: a ledger, a publishing and a recording task, a broker with
//! workers, and news that arrives late. It checks what must hold at every step.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use shared::config::PipelineConfig;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key, PipelineName};

use super::super::dispatcher::{Dispatch, Dispatcher};
use super::super::hearing::{Answer, add, hear, hear_answer};
use super::ledger::Ledger;
use crate::ledger::Effect;
use crate::ledger::transition::{Judged, State, Verdict};
use crate::notice::Notice;
use crate::run::Priority;

const START: Timestamp = Timestamp::constant(1_700_000_000, 0);

pub(super) struct World {
    pub(super) dispatcher: Dispatcher,
    pub(super) configs: BTreeMap<PipelineName, PipelineConfig>,
    pub(super) ledger: Ledger,
    pub(super) now: Timestamp,
    /// What the dispatcher has not heard yet.
    pub(super) notices: VecDeque<Notice>,
    pub(super) answers: VecDeque<Answer>,
    /// With the publishing task.
    pub(super) flying: Vec<Dispatch>,
    /// Confirmed, with the recording task.
    pub(super) confirmed: Vec<(BatchId, Attempt)>,
    /// With the broker or a worker.
    pub(super) broker: Vec<(BatchId, Attempt)>,
    /// The broker lost these.
    pub(super) lost: Vec<(BatchId, Attempt)>,
    /// These were called lost; somebody may have them all the same.
    pub(super) called_lost: Vec<(BatchId, Attempt)>,
    /// Keys in the order in which their batches were taken.
    pub(super) order: Vec<Key>,
    told: Told,
    slots: HashMap<PipelineName, u32>,
}

/// What the dispatcher has to go by.
#[derive(Default)]
struct Told {
    /// Whose place is taken, and by which attempt.
    places: HashMap<BatchId, Attempt>,
    per_key: HashMap<(PipelineName, Key), u32>,
    per_pipeline: HashMap<PipelineName, u32>,
    paused: HashSet<PipelineName>,
    stopped: HashSet<RunId>,
    parked: HashMap<(PipelineName, Option<Key>), Timestamp>,
}

pub(super) fn name(name: &str) -> PipelineName {
    PipelineName::new(name).unwrap()
}

pub(super) fn key(key: &str) -> Key {
    Key::new(key).unwrap()
}

/// The work of one pipeline with a window that slots do not size.
pub(super) fn config(window: u32, per_key: Option<u32>) -> PipelineConfig {
    PipelineConfig {
        window_min: window,
        window_max: window,
        max_in_flight_per_key: per_key,
        ..PipelineConfig::default()
    }
}

impl World {
    pub(super) fn new(pipelines: impl IntoIterator<Item = (&'static str, PipelineConfig)>) -> Self {
        let pipelines = pipelines.into_iter();
        let configs = pipelines
            .map(|(pipeline, config)| (name(pipeline), config))
            .collect();
        Self {
            dispatcher: Dispatcher::new(&configs),
            configs,
            ledger: Ledger::default(),
            now: START,
            notices: VecDeque::new(),
            answers: VecDeque::new(),
            flying: vec![],
            confirmed: vec![],
            broker: vec![],
            lost: vec![],
            called_lost: vec![],
            order: vec![],
            told: Told::default(),
            slots: HashMap::new(),
        }
    }

    /// A run of one key, heard of at once.
    pub(super) fn submit(
        &mut self,
        pipeline: &str,
        priority: Priority,
        whose: &str,
        count: u64,
    ) -> RunId {
        let run = RunId::generate();
        let pipeline = name(pipeline);
        self.ledger
            .submit(run, priority, &pipeline, &key(whose), count, self.now);
        self.notices.push_back(Notice::Accepted(run));
        self.hear_all();
        run
    }

    pub(super) fn wait(&mut self, milliseconds: i64) {
        self.now += SignedDuration::from_millis(milliseconds);
        self.dispatcher.wake(self.now);
    }

    /// Takes up to `limit` batches of a pipeline, answering reads.
    pub(super) fn take(&mut self, pipeline: &str, limit: u32) -> u32 {
        let pipeline = name(pipeline);
        let mut total = 0;
        loop {
            let taken = self.dispatcher.take(&pipeline, self.now, limit - total);
            for dispatch in taken.batches {
                total += 1;
                self.check(&dispatch);
                self.order.push(dispatch.backlog.key.clone());
                self.flying.push(dispatch);
            }
            if taken.reads.is_empty() {
                break;
            }
            for read in taken.reads {
                let page = self.ledger.page(&read.backlog, read.limit, self.now);
                self.dispatcher.page(&read, page, self.now);
            }
        }
        assert_eq!(self.dispatcher.out(), self.told.places.len());
        total
    }

    /// What must hold for each batch that goes out.
    fn check(&mut self, dispatch: &Dispatch) {
        let Dispatch { backlog, batch, .. } = dispatch;
        let pipeline = &backlog.pipeline;
        let config = &self.configs[pipeline];
        let again = self.told.places.insert(batch.id, batch.attempt);
        assert_eq!(again, None, "{} is out already", batch.id);
        let out = self.told.per_pipeline.entry(pipeline.clone()).or_default();
        *out += 1;
        let slots = self.slots.get(pipeline).copied().unwrap_or_default();
        let window = slots * config.look_ahead;
        assert!(*out <= window.clamp(config.window_min, config.window_max));
        let out = self
            .told
            .per_key
            .entry((pipeline.clone(), backlog.key.clone()));
        let out = out.or_default();
        *out += 1;
        assert!(
            config
                .max_in_flight_per_key
                .is_none_or(|limit| *out <= limit)
        );
        assert!(!self.told.paused.contains(pipeline), "{pipeline} is paused");
        let running = self.ledger.is_running(batch.id);
        assert!(
            running || !self.told.stopped.contains(&backlog.run),
            "the run was stopped"
        );
        assert!(!self.is_parked(pipeline, &backlog.key), "the key is parked");
    }

    fn is_parked(&self, pipeline: &PipelineName, key: &Key) -> bool {
        let parked = |key| {
            let until = self.told.parked.get(&(pipeline.clone(), key));
            until.is_some_and(|until| *until > self.now)
        };
        parked(Some(key.clone())) || parked(None)
    }

    /// What the publishing task does with a batch.
    pub(super) fn publish(&mut self, index: usize) {
        let dispatch = self.flying.swap_remove(index);
        if !self.ledger.waits(&dispatch.batch) {
            self.answers.push_back(Answer::Returned(vec![dispatch]));
            return;
        }
        self.ledger.published(&dispatch.batch, false);
        let attempt = (dispatch.batch.id, dispatch.batch.attempt.next());
        self.broker.push(attempt);
        self.confirmed.push(attempt);
    }

    /// A publish fails, or `seems` to: then the message is there.
    pub(super) fn fail(&mut self, index: usize, seems: bool) {
        let dispatch = self.flying.swap_remove(index);
        if seems && self.ledger.waits(&dispatch.batch) {
            self.ledger.published(&dispatch.batch, true);
            self.broker
                .push((dispatch.batch.id, dispatch.batch.attempt.next()));
        }
        self.answers.push_back(Answer::Returned(vec![dispatch]));
    }

    pub(super) fn publish_all(&mut self) {
        while !self.flying.is_empty() {
            self.publish(self.flying.len() - 1);
        }
    }

    /// Records the first of what was confirmed.
    pub(super) fn record(&mut self, count: usize) {
        let group: Vec<_> = self.confirmed.drain(..count).collect();
        for (batch, attempt) in &group {
            self.ledger.record_out(*batch, *attempt, self.now);
        }
        self.answers.push_back(Answer::Recorded(group));
    }

    /// A worker has finished a batch.
    pub(super) fn settle(&mut self, index: usize, verdict: Verdict) {
        let (batch, attempt) = self.broker.swap_remove(index);
        self.judge(batch, attempt, verdict);
    }

    pub(super) fn judge(&mut self, batch: BatchId, attempt: Attempt, verdict: Verdict) {
        let judged = Judged {
            batch,
            attempt,
            worker: None,
            took: None,
            verdict,
        };
        let settled = self.ledger.settle(&judged, self.now);
        self.notices.push_back(Notice::Settled(vec![settled]));
    }

    pub(super) fn complete_all(&mut self) {
        while !self.broker.is_empty() {
            self.settle(self.broker.len() - 1, complete());
        }
    }

    /// Reconciliation: what the broker lost and the ledger has as out goes out again.
    pub(super) fn reconcile(&mut self) {
        for (batch, attempt) in std::mem::take(&mut self.lost) {
            let stored = self.ledger.stored(batch);
            match stored.state {
                State::Out if stored.attempt == attempt => {
                    self.judge(batch, attempt, Verdict::Lose);
                    self.called_lost.push((batch, attempt));
                }
                // Not recorded yet.
                State::Pending if stored.attempt < attempt => self.lost.push((batch, attempt)),
                _ => {}
            }
        }
    }

    /// The stage compares its places with the ledger.
    pub(super) fn compare(&mut self) -> usize {
        let is_out = |batch: &&BatchId| self.ledger.stored(**batch).state == State::Out;
        let outs = self.told.places.keys().filter(is_out).copied().collect();
        let lost = self.dispatcher.compare(&outs);
        for batch in &lost {
            assert_ne!(self.ledger.stored(*batch).state, State::Out);
            self.free(*batch);
        }
        lost.len()
    }

    pub(super) fn look_downstream(&mut self) {
        for (pipeline, _) in self.dispatcher.looks() {
            let waiting = self.ledger.waiting(&pipeline);
            self.dispatcher.downstream(&pipeline, waiting);
        }
    }

    pub(super) fn hear(&mut self) {
        let Some(notice) = self.notices.pop_front() else {
            return;
        };
        self.tell(&notice);
        if let Some(run) = hear(&mut self.dispatcher, notice, self.now) {
            add(&mut self.dispatcher, &self.ledger.backlogs(run), self.now);
        }
    }

    pub(super) fn hear_answer(&mut self) {
        let Some(answer) = self.answers.pop_front() else {
            return;
        };
        if let Answer::Returned(batches) = &answer {
            for Dispatch { batch, .. } in batches {
                if self.told.places.get(&batch.id) == Some(&batch.attempt) {
                    self.free(batch.id);
                }
            }
        }
        hear_answer(&mut self.dispatcher, answer, self.now);
    }

    pub(super) fn hear_all(&mut self) {
        while !self.answers.is_empty() {
            self.hear_answer();
        }
        while !self.notices.is_empty() {
            self.hear();
        }
    }

    /// Notes what the dispatcher knows from now on.
    fn tell(&mut self, notice: &Notice) {
        match notice {
            Notice::Settled(settled) => {
                for settled in settled {
                    let place = self.told.places.get(&settled.batch);
                    let heard = match settled.effect {
                        Effect::Stale => !settled.backlogs.is_empty(),
                        effect => effect != Effect::Unknown,
                    };
                    if heard && place.is_some_and(|after| *after < settled.attempt) {
                        self.free(settled.batch);
                    }
                }
            }
            Notice::Stopped(run) => {
                self.told.stopped.insert(*run);
            }
            Notice::Changed(run) => {
                self.told.stopped.remove(run);
            }
            Notice::PipelinePaused(pipeline, true) => {
                self.told.paused.insert(pipeline.clone());
            }
            Notice::PipelinePaused(pipeline, false) => {
                self.told.paused.remove(pipeline);
            }
            Notice::Parked {
                pipelines,
                key,
                until,
            } => {
                for pipeline in pipelines {
                    let whose = (pipeline.clone(), key.clone());
                    let parked = self.told.parked.entry(whose).or_insert(*until);
                    *parked = if *until > self.now {
                        *until.max(parked)
                    } else {
                        *until
                    };
                }
            }
            Notice::Slots(slots) => self.slots.clone_from(slots),
            Notice::Accepted(_) | Notice::Pending(_) => {}
        }
    }

    fn free(&mut self, batch: BatchId) {
        if self.told.places.remove(&batch).is_some() {
            let backlog = self.ledger.backlog_of(batch);
            let whose = (backlog.pipeline.clone(), backlog.key.clone());
            *self.told.per_pipeline.get_mut(&backlog.pipeline).unwrap() -= 1;
            *self.told.per_key.get_mut(&whose).unwrap() -= 1;
        }
    }

    /// Nothing that could go out waits: neither a wake-up nor a turn was lost.
    pub(super) fn check_nothing_waits(&mut self, pipeline: &str) {
        self.hear_all();
        self.wait(60); // Longer than a stale page is left alone.
        self.take(pipeline, u32::MAX);
        let pipeline = name(pipeline);
        if self.dispatcher.room(&pipeline, self.now) == 0 {
            return;
        }
        let per_key = self.configs[&pipeline]
            .max_in_flight_per_key
            .unwrap_or(u32::MAX);
        for id in self.ledger.ids().filter(|id| id.pipeline == pipeline) {
            let whose = (pipeline.clone(), id.key.clone());
            let out = self.told.per_key.get(&whose).copied().unwrap_or_default();
            let due = !self.is_parked(&pipeline, &id.key)
                && out < per_key
                && self
                    .ledger
                    .has_due(id, self.now, |batch| self.told.places.contains_key(&batch));
            assert!(!due, "{id:?} has something to give and the window has room");
        }
    }

    /// Everything works from now on: all that is pending goes out and is completed.
    pub(super) fn finish(&mut self) {
        let pipelines: Vec<PipelineName> = self.configs.keys().cloned().collect();
        for _ in 0..1_000_000 {
            self.publish_all();
            self.record(self.confirmed.len());
            self.complete_all();
            self.reconcile();
            self.ledger.cancel_all();
            self.hear_all();
            self.look_downstream();
            self.dispatcher.wake(self.now);
            let mut took = 0;
            for pipeline in &pipelines {
                took += self.take(pipeline.as_str(), u32::MAX);
            }
            if took > 0 {
                continue;
            }
            match self.dispatcher.next_due() {
                Some(due) => self.now = self.now.max(due),
                // What was lost after its run was cancelled is nobody's any more.
                None if self.compare() + self.compare() > 0 => {}
                None => break,
            }
        }
        self.ledger.check_conservation();
        assert_eq!(
            self.ledger.count(State::Pending),
            0,
            "nothing is left behind"
        );
        assert_eq!(self.ledger.count(State::Out), 0, "nothing is left out");
        assert_eq!(self.dispatcher.out(), 0, "every place is free");
        assert!(self.dispatcher.is_idle(), "nothing is remembered");
    }
}

pub(super) fn complete() -> Verdict {
    Verdict::Complete {
        rows: 1,
        statistics: shared::outcome::Statistics::default(),
        follow_ups: vec![],
    }
}
