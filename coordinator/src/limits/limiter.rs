//! Which call may start when: a state machine without IO or clock.
//!
//! A permit names all limits that a call falls under. Each gives leave, or none does: the call starts at the
//! first moment that suits them all, and takes its place in every line. A wait that is longer than the
//! worker's patience takes no place.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::ask::{Feedback, PermitAnswer, PermitRequest};
use shared::config::{Config, LimitScope};
use shared::name::{Key, LimitName, PipelineName};

use super::bucket::{Bucket, Policy, Remembered};
use super::{LimitView, Moment};
use crate::notice::Notice;

/// The longest patience that is believed, so that lines stay short.
const MAX_PATIENCE: Duration = Duration::from_mins(5);
/// Who has to wait for longer than this is not dispatched at all.
const PARKED_FROM: Duration = Duration::from_secs(5);
/// The dispatcher is told again when a key is held for so much longer than it knows.
const TOLD_GRAIN: Duration = Duration::from_secs(1);
/// A key that nobody has used for so long, and of which nothing is known, is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(1);
/// The same whatever is known of it, but for a quota that is still used up: a rate that was learnt so long ago
/// says nothing about now.
const STALE_AFTER: Duration = Duration::from_hours(1);
/// After a crash, keys that are not remembered may have been busy until just before.
const CAUTIOUS_FOR: Duration = Duration::from_mins(1);

/// All limits.
#[derive(Debug)]
pub(super) struct Limiter {
    limits: BTreeMap<LimitName, Limit>,
    /// Keys are held, and the dispatcher does not know yet.
    news: Vec<Notice>,
    cautious_until: Duration,
    /// A line goes on for longer than the ledger knows.
    runs_ahead: bool,
    /// The coordinator is stopping, and what it will remember is being written.
    closed: bool,
}

#[derive(Debug)]
struct Limit {
    policy: Policy,
    scope: LimitScope,
    max_keys: usize,
    /// The pipelines that fall under it.
    pipelines: Vec<PipelineName>,
    /// `None` is the key of a limit that everybody shares.
    buckets: HashMap<Option<Key>, Bucket>,
    /// Before then it is no use to look for keys to forget.
    full_until: Duration,
}

/// What is remembered of a limit over a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RememberedLimit {
    /// Whether the coordinator stopped in good order right after.
    stopped: bool,
    /// By key; an empty one stands for everybody.
    keys: BTreeMap<String, Remembered>,
}

/// One limit of a request.
struct Wanted {
    limit: LimitName,
    key: Option<Key>,
    n: u32,
}

impl Limiter {
    pub(super) fn new(config: &Config) -> Self {
        let limit = |(name, limit): (&LimitName, &shared::config::LimitConfig)| {
            let pipelines = config.pipelines.iter();
            let falls_under = pipelines.filter(|(_, pipeline)| pipeline.limits.contains(name));
            let limit = Limit {
                policy: Policy::new(limit),
                scope: limit.scope,
                max_keys: usize::try_from(limit.max_keys).unwrap_or(usize::MAX),
                pipelines: falls_under.map(|(pipeline, _)| pipeline.clone()).collect(),
                buckets: HashMap::new(),
                full_until: Duration::ZERO,
            };
            (name.clone(), limit)
        };
        Self {
            limits: config.limits.iter().map(limit).collect(),
            news: Vec::new(),
            cautious_until: Duration::ZERO,
            runs_ahead: false,
            closed: false,
        }
    }

    /// When a call may start.
    pub(super) fn permit(&mut self, request: &PermitRequest, moment: Moment) -> PermitAnswer {
        if self.closed {
            return parked("the coordinator is stopping".to_owned(), TOLD_GRAIN);
        }
        let wanted = match self.wanted(request) {
            Ok(wanted) => wanted,
            Err(limit) => return PermitAnswer::Unknown { limit },
        };
        for want in &wanted {
            if self.bucket(want, moment).is_none() {
                return parked(format!("{} has too many busy keys", want.limit), TOLD_GRAIN);
            }
        }
        if let Some(answer) = self.used_up(&wanted, moment) {
            return answer;
        }
        let patience = request.patience.min(MAX_PATIENCE);
        let latest = moment.at + patience;
        let mut at = moment.at;
        while let Some((next, last)) = self.next(&wanted, at, moment) {
            if next > latest {
                let wait = next.saturating_sub(moment.at);
                return self.too_long(&wanted, last, wait, patience, moment);
            }
            if next == at {
                break;
            }
            at = next;
        }
        for want in &wanted {
            if let Some((policy, bucket)) = self.bucket(want, moment) {
                bucket.take(at, want.n);
                let runs_ahead = bucket.runs_ahead(policy, moment.at);
                self.runs_ahead |= runs_ahead;
            }
        }
        PermitAnswer::Granted {
            after: at.saturating_sub(moment.at),
        }
    }

    /// How a call ended.
    pub(super) fn feedback(&mut self, feedback: &Feedback, moment: Moment) {
        let asked_at = moment.at.saturating_sub(feedback.asked_ago);
        for about in &feedback.about {
            let Some(limit) = self.limits.get(&about.limit) else {
                continue; // Another configuration than the worker's.
            };
            let want = Wanted {
                limit: about.limit.clone(),
                // A limit of a pipeline is spoken of with the pipeline as key.
                key: (limit.scope != LimitScope::Global).then(|| about.key.clone()),
                n: 1,
            };
            let Some((policy, bucket)) = self.bucket(&want, moment) else {
                continue;
            };
            let before = bucket.counts.throttled;
            bucket.hear(&feedback.said, asked_at, policy, moment);
            let throttled = bucket.counts.throttled > before;
            let held = bucket.used_up_until(moment.at);
            let until = held.unwrap_or_default().max(bucket.line.held_until());
            if throttled {
                metrics::counter!("tidegate_throttled_calls_total", "limit" => about.limit.to_string())
                    .increment(1);
                self.tell(&want.limit, &want, until.saturating_sub(moment.at), moment);
            }
        }
    }

    /// What every call asks for, each limit once; or a limit that nobody knows.
    fn wanted(&self, request: &PermitRequest) -> Result<Vec<Wanted>, LimitName> {
        let mut wanted: Vec<Wanted> = Vec::with_capacity(request.wants.len());
        for want in &request.wants {
            let limit = self.limits.get(&want.limit);
            let limit = limit.ok_or_else(|| want.limit.clone())?;
            let key = match limit.scope {
                LimitScope::Key => Some(want.key.clone()),
                LimitScope::Pipeline => Some(pipeline_key(&request.pipeline)),
                LimitScope::Global => None,
            };
            let same = |other: &&mut Wanted| other.limit == want.limit && other.key == key;
            if let Some(same) = wanted.iter_mut().find(same) {
                same.n = same.n.saturating_add(want.n);
            } else {
                wanted.push(Wanted {
                    limit: want.limit.clone(),
                    key,
                    n: want.n,
                });
            }
        }
        Ok(wanted)
    }

    /// The share that is meant; `None` when there are too many already.
    fn bucket(&mut self, want: &Wanted, moment: Moment) -> Option<(&Policy, &mut Bucket)> {
        let cautious = moment.at < self.cautious_until;
        let limit = self.limits.get_mut(&want.limit)?;
        if !limit.buckets.contains_key(&want.key) {
            limit.make_room(moment.at)?;
            let bucket = Bucket::new(&limit.policy, moment.at, cautious);
            limit.buckets.insert(want.key.clone(), bucket);
        }
        let bucket = limit.buckets.get_mut(&want.key)?;
        bucket.used_at = moment.at;
        bucket.line.pass(moment.at, bucket.pace(&limit.policy));
        Some((&limit.policy, bucket))
    }

    /// The first moment from `at` on that each limit has for the call, and the limit whose is the latest.
    fn next(&self, wanted: &[Wanted], at: Duration, moment: Moment) -> Option<(Duration, usize)> {
        let earliest = |(index, want): (usize, &Wanted)| {
            let limit = self.limits.get(&want.limit)?;
            let bucket = limit.buckets.get(&want.key)?;
            let from = at.max(moment.at);
            Some((bucket.earliest(from, want.n, &limit.policy), index))
        };
        wanted.iter().enumerate().filter_map(earliest).max()
    }

    /// No, if a quota is used up.
    fn used_up(&mut self, wanted: &[Wanted], moment: Moment) -> Option<PermitAnswer> {
        let until = |want: &Wanted| {
            let bucket = self.limits.get(&want.limit)?.buckets.get(&want.key)?;
            bucket.used_up_until(moment.at)
        };
        let held = wanted.iter().map(until).enumerate();
        let (until, index) = held
            .filter_map(|(index, until)| Some((until?, index)))
            .max()?;
        let after = until.saturating_sub(moment.at);
        self.refuse(wanted, index, after, moment);
        Some(PermitAnswer::Parked {
            reason: format!("the quota of {} is used up", wanted[index].limit),
            after,
            until: Some(moment.wall_at(until)),
        })
    }

    /// No, because one line is too long, or held for too long.
    fn too_long(
        &mut self,
        wanted: &[Wanted],
        index: usize,
        wait: Duration,
        patience: Duration,
        moment: Moment,
    ) -> PermitAnswer {
        let bucket = self.bucket(&wanted[index], moment);
        let held_until = bucket.map_or(Duration::ZERO, |(_, bucket)| bucket.line.held_until());
        // Those who come back find a line in which it is worth while to wait.
        let after = wait
            .saturating_sub(patience / 2)
            .max(held_until.saturating_sub(moment.at));
        self.refuse(wanted, index, after, moment);
        let seconds = wait.as_secs();
        parked(
            format!("{} has no room for {seconds} s", wanted[index].limit),
            after,
        )
    }

    fn refuse(&mut self, wanted: &[Wanted], index: usize, after: Duration, moment: Moment) {
        let share = &wanted[index];
        if let Some((_, bucket)) = self.bucket(share, moment) {
            bucket.counts.parked += 1;
        }
        self.tell(&share.limit, share, after, moment);
        let has_keys = |want: &Wanted| self.limits[&want.limit].scope == LimitScope::Key;
        if has_keys(share) {
            // Its key may be another one than the batch's, a credential's: then one of the others is.
            let others = wanted.iter().filter(|other| other.key != share.key);
            let others: Vec<&Wanted> = others.filter(|other| has_keys(other)).collect();
            for other in others {
                self.tell(&share.limit, other, after, moment);
            }
        }
    }

    /// Has the dispatcher keep back what would only wait for this limit: this share's.
    fn tell(&mut self, limit: &LimitName, share: &Wanted, wait: Duration, moment: Moment) {
        let until = moment.at + wait;
        let Some((_, bucket)) = self.bucket(share, moment) else {
            return;
        };
        if wait < PARKED_FROM || until < bucket.told_until + TOLD_GRAIN {
            return;
        }
        bucket.told_until = until;
        let Some(limit) = self.limits.get(limit) else {
            return;
        };
        let of_pipeline = |pipeline: &&PipelineName| {
            limit.scope != LimitScope::Pipeline || Some(pipeline_key(pipeline)) == share.key
        };
        let pipelines = limit.pipelines.iter().filter(of_pipeline).cloned();
        let pipelines: Vec<PipelineName> = pipelines.collect();
        if !pipelines.is_empty() {
            self.news.push(Notice::Parked {
                pipelines,
                key: share.key.clone().filter(|_| limit.scope == LimitScope::Key),
                until: moment.wall_at(until),
            });
        }
    }

    /// Whether [`Self::take_news`] has something.
    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// What the dispatcher does not know yet.
    pub(super) fn take_news(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.news)
    }

    /// Forgets the keys that need not be known.
    pub(super) fn forget(&mut self, moment: Moment) {
        for (name, limit) in &mut self.limits {
            limit.forget(moment.at, FORGOTTEN_AFTER);
            metrics::gauge!("tidegate_limit_keys", "limit" => name.to_string())
                .set(crate::metrics::size(limit.buckets.len()));
        }
    }

    /// Whether [`Self::remember`] should not wait.
    pub(super) fn runs_ahead(&self) -> bool {
        self.runs_ahead
    }

    /// What a restart must not forget, by limit. `stopped`: nothing more is granted after this.
    pub(super) fn remember(&mut self, moment: Moment, stopped: bool) -> BTreeMap<String, String> {
        self.closed |= stopped;
        self.runs_ahead = false;
        let remember = |(name, limit): (&LimitName, &mut Limit)| {
            let limit = limit.remember(moment, stopped);
            let json = serde_json::to_string(&limit).expect("plain data with text keys");
            (name.to_string(), json)
        };
        self.limits.iter_mut().map(remember).collect()
    }

    /// Goes on from what was remembered. `unsaved`: how long calls may have gone on after that, had the
    /// coordinator not stopped in good order.
    pub(super) fn recall(
        &mut self,
        remembered: &BTreeMap<String, String>,
        unsaved: Duration,
        moment: Moment,
    ) {
        let names: Vec<LimitName> = self.limits.keys().cloned().collect();
        for name in names {
            let Some(json) = remembered.get(name.as_str()) else {
                continue;
            };
            match serde_json::from_str::<RememberedLimit>(json) {
                Ok(limit) => self.recall_limit(&name, limit, unsaved, moment),
                Err(error) => {
                    tracing::warn!(%error, limit = %name, "what was remembered of a limit cannot be read");
                    self.cautious_until = moment.at + CAUTIOUS_FOR;
                }
            }
        }
    }

    fn recall_limit(
        &mut self,
        name: &LimitName,
        remembered: RememberedLimit,
        unsaved: Duration,
        moment: Moment,
    ) {
        let unsaved = (!remembered.stopped).then_some(unsaved);
        if unsaved.is_some() {
            self.cautious_until = moment.at + CAUTIOUS_FOR;
        }
        let Some(limit) = self.limits.get_mut(name) else {
            return;
        };
        let mut held = Vec::new();
        for (key, remembered) in remembered.keys.into_iter().take(limit.max_keys) {
            let key = Key::new(&key).ok();
            if key.is_none() != (limit.scope == LimitScope::Global) {
                continue; // The scope was changed meanwhile.
            }
            let bucket = Bucket::recalled(&remembered, &limit.policy, moment, unsaved);
            let until = bucket.used_up_until(moment.at);
            held.extend(until.map(|until| (key.clone(), until)));
            limit.buckets.insert(key, bucket);
        }
        for (key, until) in held {
            let want = Wanted {
                limit: name.clone(),
                key,
                n: 1,
            };
            self.tell(name, &want, until.saturating_sub(moment.at), moment);
        }
    }

    /// Where everything stands.
    pub(super) fn views(&mut self, moment: Moment) -> Vec<LimitView> {
        let mut views = Vec::new();
        for (name, limit) in &mut self.limits {
            if limit.buckets.is_empty() {
                let bucket = Bucket::new(&limit.policy, moment.at, false);
                views.push(view(name, None, &bucket, &limit.policy, moment));
            }
            let begin = views.len();
            for (key, bucket) in &mut limit.buckets {
                bucket.line.pass(moment.at, bucket.pace(&limit.policy));
                views.push(view(name, key.clone(), bucket, &limit.policy, moment));
            }
            views[begin..].sort_by(|a, b| a.key.cmp(&b.key));
        }
        views
    }
}

impl Limit {
    /// Makes sure that one more key fits.
    fn make_room(&mut self, now: Duration) -> Option<()> {
        if self.buckets.len() < self.max_keys {
            return Some(());
        }
        if now >= self.full_until {
            self.full_until = now + TOLD_GRAIN;
            self.forget(now, Duration::ZERO);
        }
        (self.buckets.len() < self.max_keys).then_some(())
    }

    fn forget(&mut self, now: Duration, after: Duration) {
        let policy = &self.policy;
        self.buckets.retain(|_, bucket| {
            bucket.line.pass(now, bucket.pace(policy));
            let idle = now.saturating_sub(bucket.used_at);
            let forgettable = (bucket.is_like_new(policy, now) && idle >= after)
                || (idle >= STALE_AFTER && !bucket.is_busy(now));
            !forgettable
        });
    }

    fn remember(&mut self, moment: Moment, stopped: bool) -> RememberedLimit {
        let known = self
            .buckets
            .iter_mut()
            .filter(|(_, bucket)| !bucket.is_like_new(&self.policy, moment.at));
        let keys = known.map(|(key, bucket)| {
            let key = key.as_ref().map(ToString::to_string).unwrap_or_default();
            (key, bucket.remember(&self.policy, moment))
        });
        RememberedLimit {
            stopped,
            keys: keys.collect(),
        }
    }
}

fn view(
    limit: &LimitName,
    key: Option<Key>,
    bucket: &Bucket,
    policy: &Policy,
    moment: Moment,
) -> LimitView {
    let later = |at: Duration| (at > moment.at).then(|| moment.wall_at(at));
    let used_up = bucket.used_up_until(moment.at).unwrap_or_default();
    let held_until = bucket.line.held_until().max(used_up);
    LimitView {
        limit: limit.clone(),
        key,
        rate_per_minute: bucket.rate().map(|rate| rate * 60.0),
        max_per_minute: policy.max().map(|rate| rate * 60.0),
        next: later(bucket.earliest(moment.at, 1, policy).max(used_up)),
        waiting: u64::try_from(bucket.line.len()).unwrap_or(u64::MAX),
        parked_until: later(held_until),
        granted: bucket.counts.granted,
        parked: bucket.counts.parked,
        throttled: bucket.counts.throttled,
    }
}

fn parked(reason: String, after: Duration) -> PermitAnswer {
    PermitAnswer::Parked {
        reason,
        after,
        until: None,
    }
}

/// The key of a pipeline's share.
fn pipeline_key(pipeline: &PipelineName) -> Key {
    Key::new(pipeline.as_str()).expect("a pipeline's name is short, and has no control characters")
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
