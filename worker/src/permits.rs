//! Leave for calls to limited services. The coordinator knows the limits; a call asks it before it starts, and
//! waits for the moment that it is told.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::ask::{
    ANSWER_WITHIN, About, Answer, Feedback, PermitAnswer, PermitRequest, Question, Said, Want,
};
use shared::backoff::Backoff;
use shared::name::{Lane, LimitName, PipelineName};
use tokio::time::{Instant, sleep, sleep_until};

use crate::ask::Asker;

/// The longest wait for a permit inside a worker, and for a coordinator that could give it. What would take
/// longer goes back, so that it holds no slot.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Between two tries while nobody is there to be asked.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
/// A batch is given back so long before its deadline, which would otherwise be blamed for a coordinator's absence.
const BEFORE_DEADLINE: Duration = Duration::from_millis(500);

/// Leave for one call, from now on.
#[derive(Debug, Clone, Copy)]
pub struct Permit {
    asked_at: Instant,
}

/// No leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPermit {
    /// Not for longer than is worth waiting.
    Parked {
        /// Which limit, for a person.
        reason: String,
        /// How long from now.
        after: Duration,
        /// Set when a quota is used up: when that ends.
        until: Option<Timestamp>,
    },
    /// No such limit is configured.
    Unknown(LimitName),
    /// No coordinator answered for [`PATIENCE`].
    CoordinatorAway,
}

/// Gives leave for calls.
#[async_trait]
pub trait Permits: std::fmt::Debug + Send + Sync + 'static {
    /// Waits until a call that falls under all these limits may start; gives up at once when that is after
    /// [`PATIENCE`] or after `deadline`. Dropping the future gives the place in line away, not back.
    async fn permit(
        &self,
        pipeline: &PipelineName,
        wants: Vec<Want>,
        deadline: Instant,
    ) -> Result<Permit, NoPermit>;

    /// Says how a call ended, as far as these limits are concerned. Calls that broke on the way say nothing
    /// about limits and are not reported.
    fn report(&self, permit: Permit, about: Vec<About>, said: Said);
}

/// Permits from the coordinator.
#[derive(Debug, Clone)]
pub struct CoordinatorPermits {
    /// The way to ask.
    pub asker: Asker,
}

#[async_trait]
impl Permits for CoordinatorPermits {
    async fn permit(
        &self,
        pipeline: &PipelineName,
        wants: Vec<Want>,
        deadline: Instant,
    ) -> Result<Permit, NoPermit> {
        let give_up = deadline
            .checked_sub(BEFORE_DEADLINE)
            .unwrap_or(deadline)
            .min(Instant::now() + PATIENCE);
        for failures in 1.. {
            let asked_at = Instant::now();
            let left = give_up.saturating_duration_since(asked_at);
            if left.is_zero() {
                break;
            }
            let request = PermitRequest {
                pipeline: pipeline.clone(),
                wants: wants.clone(),
                patience: deadline.saturating_duration_since(asked_at).min(PATIENCE),
            };
            match self.ask(request, left.min(ANSWER_WITHIN)).await {
                Some(PermitAnswer::Granted { after }) => {
                    sleep_until(Instant::now() + after).await;
                    return Ok(Permit { asked_at });
                }
                Some(PermitAnswer::Parked {
                    reason,
                    after,
                    until,
                }) => {
                    return Err(NoPermit::Parked {
                        reason,
                        after,
                        until,
                    });
                }
                Some(PermitAnswer::Unknown { limit }) => return Err(NoPermit::Unknown(limit)),
                None => sleep(PAUSE.draw(failures).min(left)).await,
            }
        }
        Err(NoPermit::CoordinatorAway)
    }

    fn report(&self, permit: Permit, about: Vec<About>, said: Said) {
        let feedback = Feedback {
            about,
            asked_ago: permit.asked_at.elapsed(),
            said,
        };
        self.asker.tell(Lane::FIRST, Question::Feedback(feedback));
    }
}

impl CoordinatorPermits {
    /// Returns once a coordinator answers.
    pub async fn until_answered(&self, pipeline: &PipelineName) {
        for failures in 1.. {
            // Nothing is asked for, so nothing is used up.
            let request = PermitRequest {
                pipeline: pipeline.clone(),
                wants: Vec::new(),
                patience: Duration::ZERO,
            };
            if self.ask(request, ANSWER_WITHIN).await.is_some() {
                return;
            }
            sleep(PAUSE.draw(failures)).await;
        }
    }

    /// One question may name a limit of a key and one that all share, so all limits live in one place: with
    /// the owner of the first lane.
    async fn ask(&self, request: PermitRequest, within: Duration) -> Option<PermitAnswer> {
        let question = Question::Permit(request);
        match self.asker.ask(Lane::FIRST, question, within).await {
            Ok(Answer::Permit(answer)) => Some(answer),
            Ok(Answer::Claim(_)) => None,
            Err(error) => {
                tracing::debug!(%error, "no answer to a question for a permit");
                metrics::counter!("tidegate_permits_unanswered_total").increment(1);
                None
            }
        }
    }
}

/// Leave for everything, at once: for trying a handler without a coordinator.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unlimited;

impl Unlimited {
    /// What a [`BatchContext`](crate::handler::BatchContext) takes.
    #[must_use]
    pub fn shared() -> Arc<dyn Permits> {
        Arc::new(Self)
    }

    /// Leave for a call.
    #[must_use]
    pub fn permit() -> Permit {
        let asked_at = Instant::now();
        Permit { asked_at }
    }
}

#[async_trait]
impl Permits for Unlimited {
    async fn permit(&self, _: &PipelineName, _: Vec<Want>, _: Instant) -> Result<Permit, NoPermit> {
        Ok(Self::permit())
    }

    fn report(&self, _: Permit, _: Vec<About>, _: Said) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use shared::name::Key;

    use super::*;
    use crate::ask::AskError;

    const S: Duration = Duration::from_secs(1);

    /// Permits from a coordinator that answers the n-th question so.
    fn permits(
        mut answer: impl FnMut(usize) -> Result<PermitAnswer, AskError> + Send + 'static,
    ) -> (CoordinatorPermits, Arc<Mutex<Vec<PermitRequest>>>) {
        let requests: Arc<Mutex<Vec<PermitRequest>>> = Arc::default();
        let noted = requests.clone();
        let asker = Asker::answered_by(move |question| {
            let Question::Permit(request) = question else {
                panic!("{question:?}");
            };
            let mut noted = noted.lock().unwrap();
            noted.push(request);
            answer(noted.len()).map(Answer::Permit)
        });
        (CoordinatorPermits { asker }, requests)
    }

    async fn ask(permits: &CoordinatorPermits, deadline: Duration) -> Result<Permit, NoPermit> {
        let want = Want {
            limit: LimitName::new("site").unwrap(),
            key: Key::default(),
            n: 1,
        };
        let pipeline = PipelineName::new("p").unwrap();
        let deadline = Instant::now() + deadline;
        permits.permit(&pipeline, vec![want], deadline).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_is_given_when_its_time_has_come() {
        let (permits, asked) = permits(|_| Ok(PermitAnswer::Granted { after: 3 * S }));
        let begin = Instant::now();
        ask(&permits, 600 * S).await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), 3);
        ask(&permits, 10 * S).await.unwrap();
        let asked = asked.lock().unwrap();
        let patience: Vec<Duration> = asked.iter().map(|request| request.patience).collect();
        assert_eq!(patience, [PATIENCE, 10 * S]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_passed_on() {
        let (permits, _) = permits(|_| {
            Ok(PermitAnswer::Parked {
                reason: "quota".into(),
                after: 90 * S,
                until: None,
            })
        });
        let refusal = ask(&permits, 600 * S).await.unwrap_err();
        assert!(matches!(refusal, NoPermit::Parked { after, .. } if after == 90 * S));
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_comes_back_is_asked_again() {
        let (permits, _) = permits(|number| match number {
            ..20 => Err(AskError::NobodyAnswers),
            _ => Ok(PermitAnswer::Granted { after: S }),
        });
        ask(&permits, 600 * S).await.unwrap();
        permits
            .until_answered(&PipelineName::new("p").unwrap())
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_and_so_does_the_time_before_the_deadline() {
        let (permits, _) = permits(|_| Err(AskError::NobodyAnswers));
        for (deadline, seconds) in [(600 * S, 60), (10 * S, 9)] {
            let begin = Instant::now();
            let refusal = ask(&permits, deadline).await.unwrap_err();
            assert_eq!(refusal, NoPermit::CoordinatorAway);
            assert_eq!(begin.elapsed().as_secs(), seconds);
        }
    }
}
