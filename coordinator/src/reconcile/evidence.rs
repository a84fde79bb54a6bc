//! When a batch is lost: everything that has to be true before it is called so. Pure.
//!
//! A batch that is out is in one of four places: waiting in its work queue, with a worker, waiting as an outcome,
//! or being settled. Queues are first in, first out, so one that was empty for a moment holds nothing that was put
//! there before. Calling a batch lost that is not costs a second run whose effect the commit marker prevents.

use std::time::{Duration, Instant};

/// How long nobody may have had a batch whose queue is known to be gone with all that it held: as long as a
/// worker needs to speak again after it lost its connection.
pub const GONE_PATIENCE: Duration = Duration::from_secs(15);

/// What is known about one batch that is out.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The moment of judging.
    pub now: Instant,
    /// How long it has been out.
    pub out_for: Duration,
    /// For how long no live worker has had it; `None` when workers cannot be heard.
    pub unheard: Option<Duration>,
    /// Whether its queue has consumers that no live worker accounts for.
    pub strangers: bool,
    /// Whether its queue was missing, or was declared anew, since it went out.
    pub queue_gone: bool,
    /// Since when its work queue was seen empty twice.
    pub work_empty: Option<Instant>,
    /// Since when its lane's outcomes queue was seen empty twice.
    pub outcomes_empty: Option<Instant>,
    /// Everything that had arrived before then is settled.
    pub caught_up: Instant,
    /// Whether the broker takes no publishes, so that workers that live cannot say so.
    pub blocked: bool,
}

/// Why a batch may not be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Nobody can say that he has it.
    Blocked,
    /// Whoever says that he has it is not heard.
    Deaf,
    /// It went out, or somebody had it, a moment ago.
    Recent,
    /// Somebody may have it whom nobody knows.
    Strangers,
    /// It may wait in its queue.
    QueueNotEmpty,
    /// Its outcome may wait.
    OutcomesWait,
    /// Its outcome may be being settled.
    Settling,
}

/// Whether the batch is lost, when `after` is how long nobody may have had it.
pub fn judge(evidence: &Evidence, after: Duration) -> Result<(), Doubt> {
    if evidence.blocked {
        return Err(Doubt::Blocked);
    }
    let unheard = evidence.unheard.ok_or(Doubt::Deaf)?;
    let nobodys_for = unheard.min(evidence.out_for);
    let patience = if evidence.queue_gone {
        GONE_PATIENCE
    } else {
        after
    };
    if nobodys_for < patience {
        return Err(Doubt::Recent);
    }
    if evidence.strangers {
        return Err(Doubt::Strangers);
    }
    let since = |seen: Option<Instant>| {
        seen.filter(|at| evidence.now.saturating_duration_since(*at) <= nobodys_for)
    };
    if since(evidence.work_empty).is_none() {
        return Err(Doubt::QueueNotEmpty);
    }
    let outcomes_empty = since(evidence.outcomes_empty).ok_or(Doubt::OutcomesWait)?;
    if evidence.caught_up < outcomes_empty {
        return Err(Doubt::Settling);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(35);

    const SECOND: Duration = Duration::from_secs(1);

    /// Lost: at this moment, a minute after the start.
    fn lost(start: Instant) -> Evidence {
        Evidence {
            now: start + 60 * SECOND,
            out_for: 60 * SECOND,
            unheard: Some(AFTER),
            strangers: false,
            queue_gone: false,
            work_empty: Some(start + 55 * SECOND),
            outcomes_empty: Some(start + 55 * SECOND),
            caught_up: start + 60 * SECOND,
            blocked: false,
        }
    }

    #[test]
    fn what_is_nowhere_is_lost() {
        assert_eq!(judge(&lost(Instant::now()), AFTER), Ok(()));
    }

    #[test]
    fn every_single_doubt_is_enough() {
        type Change = fn(&mut Evidence);
        let start = Instant::now();
        let cases: [(Doubt, Change); 11] = [
            (Doubt::Blocked, |e| e.blocked = true),
            (Doubt::Blocked, |e| {
                (e.blocked, e.queue_gone) = (true, true);
            }),
            (Doubt::Deaf, |e| e.unheard = None),
            (Doubt::Recent, |e| e.out_for = 34 * SECOND),
            (Doubt::Recent, |e| e.unheard = Some(34 * SECOND)),
            (Doubt::Recent, |e| {
                (e.queue_gone, e.unheard) = (true, Some(14 * SECOND));
            }),
            (Doubt::Strangers, |e| e.strangers = true),
            (Doubt::QueueNotEmpty, |e| e.work_empty = None),
            // Empty, but while somebody had it.
            (Doubt::QueueNotEmpty, |e| {
                e.work_empty = e.work_empty.and_then(|at| at.checked_sub(40 * SECOND));
            }),
            (Doubt::OutcomesWait, |e| e.outcomes_empty = None),
            (Doubt::Settling, |e| {
                e.caught_up = e.outcomes_empty.unwrap().checked_sub(SECOND).unwrap();
            }),
        ];
        for (doubt, change) in cases {
            let mut evidence = lost(start);
            change(&mut evidence);
            assert_eq!(judge(&evidence, AFTER), Err(doubt), "{evidence:?}");
        }
    }

    #[test]
    fn what_a_deleted_queue_held_is_lost_sooner() {
        let mut evidence = lost(Instant::now());
        evidence.unheard = Some(GONE_PATIENCE);
        assert_eq!(judge(&evidence, AFTER), Err(Doubt::Recent));
        evidence.queue_gone = true;
        assert_eq!(judge(&evidence, AFTER), Ok(()));
    }
}
