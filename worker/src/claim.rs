//! Asks what to do with a batch that was delivered before: its last worker may have died of it.

use std::time::Duration;

use shared::ask::{ANSWER_WITHIN, Answer, ClaimAnswer, ClaimRequest, Question};
use shared::batch::Batch;
use shared::name::Instance;
use tokio::time::{Instant, sleep};

use crate::ask::{AskError, Asker};

/// How long an answer is waited for, before the batch is run alone unasked: long enough for a coordinator to be
/// restarted, and the work goes on without one.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same once nothing else runs in this worker, so that every moment costs.
const PATIENCE_ALONE: Duration = Duration::from_secs(5);
/// Between two tries while nobody is there to be asked.
const PAUSE: Duration = Duration::from_millis(250);

/// Asks for one worker.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// The way to ask.
    pub asker: Asker,
    /// Who asks.
    pub worker: Instance,
    /// How many lanes there are.
    pub lanes: u16,
}

impl Claimant {
    /// What to do with this batch. `alone`: nothing else runs here now. `None` when nobody answers.
    pub async fn claim(&self, batch: &Batch, alone: bool) -> Option<ClaimAnswer> {
        let patience = if alone { PATIENCE_ALONE } else { PATIENCE };
        let give_up = Instant::now() + patience;
        let request = ClaimRequest {
            batch: batch.id,
            attempt: batch.attempt,
            worker: self.worker.clone(),
            alone,
        };
        let lane = batch.key.lane(self.lanes);
        loop {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(batch.id = %batch.id, "nobody says what to do with a batch that was delivered before, it is run alone");
                return None;
            }
            let question = Question::Claim(request.clone());
            match self
                .asker
                .ask(lane, question, left.min(ANSWER_WITHIN))
                .await
            {
                Ok(Answer::Claim(answer)) => return Some(answer),
                Ok(Answer::Permit(_)) | Err(AskError::NobodyAnswers | AskError::Broker(_)) => {
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
