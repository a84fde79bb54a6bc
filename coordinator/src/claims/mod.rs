//! Suspects: what to do with a batch that was delivered to somebody before, so that one that kills workers takes
//! no others along for long, and is not allowed to go on for ever.
//!
//! Whoever gives a batch back alive says so first, and then it is run like any other. Otherwise its worker may
//! have died of it, or of a neighbour: it is run alone, and only what ran alone when its worker died is blamed.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use shared::ask::{ClaimAnswer, ClaimRequest};
use shared::name::Instance;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::ask::Claims;
use crate::ledger::{
    Judged, LedgerError, ReconciliationLedger, SettlementLedger, Suspect, Verdict,
};
use crate::notice::Notice;
use crate::presence::SharedFleet;
use crate::run::BatchState;

/// Reason of a batch that killed its workers.
pub const POISON: &str = "poison";
/// Deaths after which a batch is dead: one with neighbours, two alone.
pub const MAX_DEATHS: u32 = 3;
/// How long a worker's word may be behind its batch: both take a millisecond, by different ways.
const WORD_BEHIND: Duration = Duration::from_millis(200);
/// How long a worker that ran a batch alone has to speak, before it is taken for dead: it does so every two
/// seconds, and may have lost its connection only.
const LIFE_SIGN: Duration = Duration::from_secs(3);
/// How often somebody looks for such a word.
const LOOK: Duration = Duration::from_millis(20);

/// Answers claims.
pub struct Suspects {
    /// What is known of suspects.
    pub ledger: Arc<dyn ReconciliationLedger>,
    /// Where the poisonous are settled.
    pub settlement: Arc<dyn SettlementLedger>,
    /// Hears who gives back and who lives.
    pub fleet: SharedFleet,
    /// Tells the dispatcher.
    pub notices: mpsc::Sender<Notice>,
}

/// What became of the worker that had the batch before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// It lives, whatever happened.
    Lives,
    /// It has not been heard of since.
    Died,
}

/// What is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ruling {
    /// Nothing is remembered.
    Answer(ClaimAnswer),
    /// This is remembered first.
    Remember {
        answer: ClaimAnswer,
        deaths: u32,
        alone_on: Option<Instance>,
    },
    /// It is dead, after so many deaths.
    Poison(u32),
}

/// | what is known | worker before: lives | died |
/// |---|---|---|
/// | attempt settled, stale or never made | drop | drop |
/// | run cancelled | cancelled | cancelled |
/// | nothing | run | alone, and suspected: one death |
/// | suspected, ran with neighbours | alone | alone |
/// | told to run alone | alone | alone and one more death; at the third it is dead |
fn rule(suspect: &Suspect, request: &ClaimRequest, before: Before) -> Ruling {
    let stored = &suspect.stored;
    let current = match stored.state {
        BatchState::Pending => request.attempt == stored.attempt.next(),
        BatchState::Out => request.attempt == stored.attempt,
        BatchState::Completed | BatchState::Dead | BatchState::Cancelled => false,
    };
    if !current {
        return Ruling::Answer(ClaimAnswer::Drop);
    }
    if stored.called_off {
        return Ruling::Answer(ClaimAnswer::Cancelled);
    }
    let deaths = match (before, &suspect.alone_on) {
        (Before::Lives, _) => suspect.deaths,
        (Before::Died, Some(_)) => suspect.deaths + 1,
        (Before::Died, None) => suspect.deaths.max(1),
    };
    if deaths >= MAX_DEATHS {
        return Ruling::Poison(deaths);
    }
    let answer = if deaths == 0 {
        ClaimAnswer::Run
    } else {
        ClaimAnswer::Alone
    };
    Ruling::Remember {
        answer,
        deaths,
        alone_on: request.alone.then(|| request.worker.clone()),
    }
}

#[async_trait]
impl Claims for Suspects {
    async fn claim(&self, request: &ClaimRequest) -> Result<ClaimAnswer, LedgerError> {
        let Some(suspect) = self.ledger.suspect(request.batch).await? else {
            tracing::warn!(batch.id = %request.batch, worker = %request.worker, "a worker has a batch that the ledger does not know");
            return Ok(count(ClaimAnswer::Drop));
        };
        let before = self.before(&suspect, request).await;
        match rule(&suspect, request, before) {
            Ruling::Answer(answer) => Ok(count(answer)),
            Ruling::Remember {
                answer,
                deaths,
                alone_on,
            } => {
                if deaths > suspect.deaths && suspect.alone_on.is_some() {
                    let died = suspect.alone_on.as_ref().map(ToString::to_string);
                    tracing::warn!(batch.id = %request.batch, worker = died, deaths, "a worker died while it ran this batch alone");
                }
                if (deaths, &alone_on) != (suspect.deaths, &suspect.alone_on) {
                    self.ledger
                        .suspected(request.batch, request.attempt, deaths, alone_on.as_ref())
                        .await?;
                }
                Ok(count(answer))
            }
            Ruling::Poison(deaths) => {
                self.kill(request, suspect.alone_on, deaths).await?;
                Ok(count(ClaimAnswer::Drop))
            }
        }
    }
}

impl Suspects {
    /// Waits for the words that would clear the batch, where there is something to clear.
    async fn before(&self, suspect: &Suspect, request: &ClaimRequest) -> Before {
        let asked = Instant::now();
        let patience = match &suspect.alone_on {
            Some(worker) if *worker == request.worker => return Before::Lives,
            Some(_) => LIFE_SIGN,
            None if suspect.deaths == 0 => WORD_BEHIND,
            // Nothing that could be said would make a difference.
            None => Duration::ZERO,
        };
        loop {
            if self.gives_a_sign(suspect, request, asked) {
                return Before::Lives;
            }
            if asked.elapsed() >= patience {
                // Nobody is blamed for a silence that is ours.
                let deaf = suspect.alone_on.is_some() && !self.is_listening();
                return if deaf { Before::Lives } else { Before::Died };
            }
            sleep(LOOK).await;
        }
    }

    fn gives_a_sign(&self, suspect: &Suspect, request: &ClaimRequest, asked: Instant) -> bool {
        let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        // What it said just before it died may arrive a little later.
        let since = asked + WORD_BEHIND;
        let spoke = |worker| fleet.last_words(worker).is_some_and(|at| at > since);
        suspect.alone_on.as_ref().is_some_and(spoke) || fleet.take_returned(request.batch)
    }

    fn is_listening(&self) -> bool {
        let fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.is_listening()
    }

    async fn kill(
        &self,
        request: &ClaimRequest,
        worker: Option<Instance>,
        deaths: u32,
    ) -> Result<(), LedgerError> {
        tracing::warn!(batch.id = %request.batch, deaths, "a batch kills workers, it is dead");
        metrics::counter!("tidegate_poisoned_total").increment(1);
        let judged = Judged {
            batch: request.batch,
            attempt: request.attempt,
            worker,
            took: None,
            verdict: Verdict::Kill {
                reason: POISON.to_owned(),
                error: format!(
                    "{deaths} workers died while they had it, the last ones while they ran nothing else"
                ),
            },
        };
        let settled = self.settlement.settle(&[judged], Timestamp::now()).await?;
        // Only while draining does nobody listen.
        let _ = self.notices.send(Notice::Settled(settled)).await;
        Ok(())
    }
}

fn count(answer: ClaimAnswer) -> ClaimAnswer {
    let word = match answer {
        ClaimAnswer::Run => "run",
        ClaimAnswer::Alone => "alone",
        ClaimAnswer::Drop => "drop",
        ClaimAnswer::Cancelled => "cancelled",
    };
    metrics::counter!("tidegate_claims_total", "answer" => word).increment(1);
    answer
}

#[cfg(test)]
mod tests;
