//! The states of a batch and every legal change between them: the only place that says so.
//!
//! Pure: what is stored and what happened go in, what to store comes out.

use std::time::Duration;

use jiff::Timestamp;
use shared::backoff::Backoff;
use shared::id::BatchId;
use shared::name::{Attempt, Instance};
use shared::outcome::{FollowUp, Statistics};

use super::Effect;
pub use crate::run::BatchState as State;

/// What the ledger has of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Where it stands.
    pub state: State,
    /// The last attempt that the ledger knows of.
    pub attempt: Attempt,
    /// How many attempts failed.
    pub failures: u32,
    /// How often it was handed back without a verdict.
    pub releases: u32,
    /// Its run was cancelled: what would go out again is cancelled too.
    pub called_off: bool,
}

/// An outcome with all that is needed to settle it.
#[derive(Debug, Clone)]
pub struct Judged {
    /// Whose outcome.
    pub batch: BatchId,
    /// Of which attempt.
    pub attempt: Attempt,
    /// Who worked on it.
    pub worker: Option<Instance>,
    /// How long its handler ran.
    pub took: Option<Duration>,
    /// What should become of the batch.
    pub verdict: Verdict,
}

/// What should become of a batch, if its attempt is the current one.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// It is done.
    Complete {
        /// Rows that it stands for.
        rows: u64,
        /// What else was counted.
        statistics: Statistics,
        /// What it asks for.
        follow_ups: Vec<FollowUp>,
    },
    /// It failed and may be tried again, as often as the policy allows.
    Retry {
        /// What went wrong.
        error: String,
        /// The handler's wish; otherwise the policy's backoff decides.
        after: Option<Duration>,
        /// How often and how long.
        policy: RetryPolicy,
        /// A random number between 0 and 1 for the jitter.
        random: f64,
    },
    /// It goes out again later and no attempt is burnt: a limit was reached.
    Hold {
        /// Which one.
        reason: String,
        /// How long to hold it back.
        after: Duration,
    },
    /// It goes out again later and no attempt is burnt: this worker could not run it.
    Release {
        /// Why not.
        reason: String,
    },
    /// The broker has it no more, and nobody works on it: it goes out again at once, no attempt is burnt.
    Lose,
    /// It is dead.
    Kill {
        /// In one closed word.
        reason: String,
        /// For a person.
        error: String,
    },
}

/// How often and how long a pipeline tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures after which a batch is dead.
    pub max_attempts: u32,
    /// Delays between them.
    pub backoff: Backoff,
}

/// Reason of a batch that failed too often.
pub const ATTEMPTS_EXHAUSTED: &str = "attempts_exhausted";
/// Reason of a batch that was discarded by an operator.
pub const DISCARDED: &str = "discarded";
/// Times that a batch may be handed back before it is dead: with [`RELEASE_DELAY`], a rolling upgrade
/// has about 25 minutes to bring a worker that can run it.
const MAX_RELEASES: u32 = 100;
/// How long a batch that was handed back waits for a worker that can run it.
const RELEASE_DELAY: Duration = Duration::from_secs(15);

/// What settling does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it means for the batch.
    pub effect: Effect,
    /// What to store; `None` when nothing changes.
    pub store: Option<Update>,
}

/// What to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// State and counts.
    pub stored: Stored,
    /// Pending: when it may go out. Otherwise: now.
    pub due: Timestamp,
    /// Why it is dead or waits, in one word.
    pub reason: Option<String>,
    /// The same, for a person.
    pub error: Option<String>,
}

/// Whether an attempt that was published is to be recorded as out.
///
/// | stored | this attempt is the next one | not newer than the stored one | any other |
/// |---|---|---|---|
/// | pending | out | nothing: settled first | nothing |
/// | out, final | nothing | nothing | nothing |
#[must_use]
pub fn record_out(stored: &Stored, attempt: Attempt) -> Option<Stored> {
    let expected = stored.state == State::Pending && attempt == stored.attempt.next();
    expected.then_some(Stored {
        state: State::Out,
        attempt,
        ..*stored
    })
}

/// What an outcome does.
///
/// | stored | outcome of the current attempt | of an older one | of one never made |
/// |---|---|---|---|
/// | pending | settles (it overtook its own recording: the next attempt is current) | `Complete` wins late, else stale | unknown |
/// | out | settles | the same | unknown |
/// | completed | duplicate | duplicate | duplicate |
/// | dead, cancelled | `Complete` wins late, else duplicate | `Complete` wins late, else duplicate | unknown |
///
/// A batch that was cancelled while it was pending may have been published and not recorded: its next
/// attempt counts as current too. When its run was cancelled, what would go out again is cancelled instead.
/// [`Verdict::Lose`] says something about an attempt that is out, and nothing about any other state.
///
/// A late `Complete` wins because its rows are in the sink: calling it anything else would be untrue. Whoever
/// has a later attempt finds that out, and reports the same.
#[must_use]
pub fn settle(stored: &Stored, outcome: &Judged, now: Timestamp) -> Change {
    let nothing = |effect| Change {
        effect,
        store: None,
    };
    let newest = match stored.state {
        State::Pending | State::Cancelled => stored.attempt.next(),
        _ => stored.attempt,
    };
    if matches!(outcome.verdict, Verdict::Lose) && stored.state == State::Pending {
        return nothing(Effect::Stale);
    }
    let is_over =
        matches!(stored.state, State::Dead | State::Cancelled) || outcome.attempt < newest;
    match stored.state {
        State::Completed => nothing(Effect::Duplicate),
        _ if outcome.attempt > newest => nothing(Effect::Unknown),
        _ if is_over && matches!(outcome.verdict, Verdict::Complete { .. }) => Change {
            effect: Effect::CompletedLate,
            store: Some(completed(stored, now)),
        },
        State::Dead | State::Cancelled => nothing(Effect::Duplicate),
        State::Pending | State::Out if outcome.attempt < newest => nothing(Effect::Stale),
        State::Pending | State::Out => apply(
            &Stored {
                attempt: outcome.attempt,
                ..*stored
            },
            &outcome.verdict,
            now,
        ),
    }
}

fn apply(stored: &Stored, verdict: &Verdict, now: Timestamp) -> Change {
    match verdict {
        Verdict::Complete { .. } => Change {
            effect: Effect::Completed,
            store: Some(completed(stored, now)),
        },
        Verdict::Retry {
            error,
            after,
            policy,
            random,
        } => {
            let failures = stored.failures + 1;
            let stored = Stored {
                failures,
                ..*stored
            };
            if failures >= policy.max_attempts {
                return dead(&stored, now, ATTEMPTS_EXHAUSTED, error);
            }
            let delay = after.unwrap_or_else(|| policy.backoff.delay(failures, *random));
            again(&stored, now, delay, "retry", error)
        }
        Verdict::Hold { reason, after } => again(stored, now, *after, "throttled", reason),
        Verdict::Release { reason } => {
            let releases = stored.releases + 1;
            let stored = Stored {
                releases,
                ..*stored
            };
            if releases > MAX_RELEASES {
                return dead(&stored, now, reason, "no worker could run it");
            }
            again(
                &stored,
                now,
                RELEASE_DELAY,
                reason,
                "no worker could run it yet",
            )
        }
        Verdict::Lose => again(
            stored,
            now,
            Duration::ZERO,
            "lost",
            "the broker had it no more and no worker held it",
        ),
        Verdict::Kill { reason, error } => dead(stored, now, reason, error),
    }
}

/// What cancelling its run does to a batch: pending ones are cancelled at once, those that are out become
/// what their outcome says. The ledgers do this in one statement for many batches.
#[cfg(test)]
pub(crate) fn cancel(stored: &Stored) -> Option<Stored> {
    (stored.state == State::Pending).then_some(Stored {
        state: State::Cancelled,
        ..*stored
    })
}

/// What redriving does: a dead batch of a run that was not cancelled starts over. Its attempts go on
/// counting, so that a late outcome of an earlier one stays recognisable.
#[must_use]
pub fn redrive(stored: &Stored) -> Option<Stored> {
    (stored.state == State::Dead && !stored.called_off).then_some(Stored {
        state: State::Pending,
        failures: 0,
        releases: 0,
        ..*stored
    })
}

/// What discarding does: a dead batch is called off, with reason [`DISCARDED`].
#[must_use]
pub fn discard(stored: &Stored) -> Option<Stored> {
    (stored.state == State::Dead).then_some(Stored {
        state: State::Cancelled,
        ..*stored
    })
}

fn completed(stored: &Stored, now: Timestamp) -> Update {
    Update {
        stored: Stored {
            state: State::Completed,
            ..*stored
        },
        due: now,
        reason: None,
        error: None,
    }
}

fn again(stored: &Stored, now: Timestamp, delay: Duration, reason: &str, error: &str) -> Change {
    let (effect, state, due) = if stored.called_off {
        (Effect::Cancelled, State::Cancelled, now)
    } else {
        (Effect::Again, State::Pending, later(now, delay))
    };
    let update = Update {
        stored: Stored { state, ..*stored },
        due,
        reason: Some(reason.to_owned()),
        error: Some(error.to_owned()),
    };
    Change {
        effect,
        store: Some(update),
    }
}

fn dead(stored: &Stored, now: Timestamp, reason: &str, error: &str) -> Change {
    let update = Update {
        stored: Stored {
            state: State::Dead,
            ..*stored
        },
        due: now,
        reason: Some(reason.to_owned()),
        error: Some(error.to_owned()),
    };
    Change {
        effect: Effect::Dead,
        store: Some(update),
    }
}

fn later(now: Timestamp, delay: Duration) -> Timestamp {
    now.checked_add(delay).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);

    fn stored(state: State, attempt: u32) -> Stored {
        Stored {
            state,
            attempt: Attempt::new(attempt),
            failures: 0,
            releases: 0,
            called_off: false,
        }
    }

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 3,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_mins(1)),
        }
    }

    fn verdicts() -> [Verdict; 6] {
        [
            Verdict::Complete {
                rows: 1,
                statistics: Statistics::new(),
                follow_ups: vec![],
            },
            Verdict::Retry {
                error: "e".into(),
                after: None,
                policy: policy(),
                random: 1.0,
            },
            Verdict::Hold {
                reason: "quota".into(),
                after: Duration::from_secs(9),
            },
            Verdict::Release {
                reason: "unsupported_version".into(),
            },
            Verdict::Kill {
                reason: "failed".into(),
                error: "e".into(),
            },
            Verdict::Lose,
        ]
    }

    fn judged(attempt: u32, verdict: &Verdict) -> Judged {
        Judged {
            batch: BatchId::generate(),
            attempt: Attempt::new(attempt),
            worker: None,
            took: None,
            verdict: verdict.clone(),
        }
    }

    /// Every state × every verdict × an older, the current, and a never-made attempt.
    #[test]
    fn the_whole_table() {
        use Effect::{Again, Cancelled, Completed, CompletedLate, Dead, Duplicate, Stale, Unknown};
        let current = [Completed, Again, Again, Again, Dead, Again];
        let overtaking = [Completed, Again, Again, Again, Dead, Stale];
        let unneeded = [Completed, Cancelled, Cancelled, Cancelled, Dead, Cancelled];
        let late = [
            CompletedLate,
            Duplicate,
            Duplicate,
            Duplicate,
            Duplicate,
            Duplicate,
        ];
        let older = [CompletedLate, Stale, Stale, Stale, Stale, Stale];
        let unknown_but_lost = [Unknown, Unknown, Unknown, Unknown, Unknown, Stale];
        let called_off = |stored| Stored {
            called_off: true,
            ..stored
        };
        let rows: [(Stored, u32, [Effect; 6]); 18] = [
            (stored(State::Pending, 1), 1, older),
            (stored(State::Pending, 1), 2, overtaking),
            (stored(State::Pending, 1), 3, unknown_but_lost),
            (stored(State::Out, 2), 1, older),
            (stored(State::Out, 2), 2, current),
            (called_off(stored(State::Out, 2)), 1, older),
            (called_off(stored(State::Out, 2)), 2, unneeded),
            (stored(State::Out, 2), 3, [Unknown; 6]),
            (stored(State::Completed, 2), 1, [Duplicate; 6]),
            (stored(State::Completed, 2), 2, [Duplicate; 6]),
            (stored(State::Completed, 2), 3, [Duplicate; 6]),
            (stored(State::Dead, 2), 1, late),
            (stored(State::Dead, 2), 2, late),
            (stored(State::Dead, 2), 3, [Unknown; 6]),
            (stored(State::Cancelled, 2), 1, late),
            (stored(State::Cancelled, 2), 2, late),
            (stored(State::Cancelled, 2), 3, late),
            (stored(State::Cancelled, 2), 4, [Unknown; 6]),
        ];
        for (stored, attempt, expected) in rows {
            let effects =
                verdicts().map(|verdict| settle(&stored, &judged(attempt, &verdict), NOW).effect);
            assert_eq!(
                effects, expected,
                "{stored:?}, outcome of attempt {attempt}"
            );
        }
    }

    #[test]
    fn effects_without_a_change_store_nothing() {
        for state in [
            State::Pending,
            State::Out,
            State::Completed,
            State::Dead,
            State::Cancelled,
        ] {
            for verdict in verdicts() {
                for attempt in 0..4 {
                    let change = settle(&stored(state, 2), &judged(attempt, &verdict), NOW);
                    let nothing = matches!(
                        change.effect,
                        Effect::Duplicate | Effect::Stale | Effect::Unknown
                    );
                    assert_eq!(change.store.is_none(), nothing, "{change:?}");
                }
            }
        }
    }

    #[test]
    fn recording_changes_only_the_attempt_that_is_due() {
        let out = Some(stored(State::Out, 2));
        assert_eq!(record_out(&stored(State::Pending, 1), Attempt::new(2)), out);
        assert_eq!(
            record_out(&stored(State::Pending, 2), Attempt::new(2)),
            None
        );
        assert_eq!(
            record_out(&stored(State::Pending, 0), Attempt::new(2)),
            None
        );
        for state in [State::Out, State::Completed, State::Dead, State::Cancelled] {
            assert_eq!(
                record_out(&stored(state, 1), Attempt::new(2)),
                None,
                "{state:?}"
            );
        }
    }

    #[test]
    fn operators_change_only_what_they_may() {
        for state in [
            State::Pending,
            State::Out,
            State::Completed,
            State::Dead,
            State::Cancelled,
        ] {
            let worn = Stored {
                failures: 3,
                releases: 2,
                ..stored(state, 4)
            };
            let to = |state| Some(Stored { state, ..worn });
            let fresh = Some(stored(State::Pending, 4));
            let off = Stored {
                called_off: true,
                ..worn
            };
            let (is_pending, is_dead) = (state == State::Pending, state == State::Dead);
            assert_eq!(cancel(&worn), to(State::Cancelled).filter(|_| is_pending));
            assert_eq!(redrive(&worn), fresh.filter(|_| is_dead), "{state:?}");
            assert_eq!(redrive(&off), None, "{state:?}");
            assert_eq!(discard(&worn), to(State::Cancelled).filter(|_| is_dead));
        }
    }

    #[test]
    fn attempts_end_in_a_visible_dead_state() {
        let retry = &verdicts()[1];
        let mut batch = stored(State::Out, 1);
        for failure in 1..=2 {
            let update = settle(&batch, &judged(batch.attempt.number(), retry), NOW)
                .store
                .unwrap();
            assert_eq!(update.stored.state, State::Pending);
            assert_eq!(update.due, NOW + Duration::from_secs(failure));
            batch = record_out(&update.stored, update.stored.attempt.next()).unwrap();
        }
        let update = settle(&batch, &judged(3, retry), NOW).store.unwrap();
        assert_eq!(update.stored.state, State::Dead);
        assert_eq!(update.reason.as_deref(), Some(ATTEMPTS_EXHAUSTED));
    }

    #[test]
    fn holding_burns_nothing_and_releasing_ends_some_day() {
        let [_, _, hold, release, ..] = verdicts();
        let update = settle(&stored(State::Out, 1), &judged(1, &hold), NOW)
            .store
            .unwrap();
        assert_eq!(
            (update.stored.failures, update.due),
            (0, NOW + Duration::from_secs(9))
        );

        let worn = Stored {
            releases: MAX_RELEASES,
            ..stored(State::Out, 1)
        };
        let update = settle(&worn, &judged(1, &release), NOW).store.unwrap();
        assert_eq!(
            (update.stored.state, update.stored.failures),
            (State::Dead, 0)
        );
        assert_eq!(update.reason.as_deref(), Some("unsupported_version"));
    }
}
