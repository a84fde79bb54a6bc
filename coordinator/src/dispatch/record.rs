//! Records confirmed attempts as out: whatever was confirmed since the previous group [began](Gathering)
//! goes into the next one.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use shared::backoff::Backoff;
use shared::gather::Gathering;
use shared::id::BatchId;
use shared::name::Attempt;
use tokio::sync::mpsc;

use super::hearing::Answer;
use crate::ledger::DispatchLedger;

/// Most attempts of one transaction.
const GROUP: usize = 4_096;

/// Runs until nothing more will be confirmed.
pub(super) async fn run(
    ledger: Arc<dyn DispatchLedger>,
    mut confirmed: mpsc::Receiver<Vec<(BatchId, Attempt)>>,
    answers: mpsc::Sender<Answer>,
) {
    let mut gathering = Gathering::new();
    while let Some(mut group) = confirmed.recv().await {
        gathering.gathered().await;
        add_confirmed(&mut group, &mut confirmed);
        gathering.had_company(group.len()).await;
        add_confirmed(&mut group, &mut confirmed);
        gathering.begin();
        let started = Instant::now();
        let mut failures = 0;
        while let Err(error) = ledger.record_out(&group, Timestamp::now()).await {
            // Not recording is safe for a while: the batches count as out in the dispatcher, and a restart
            // would publish them again with the same attempt.
            failures += 1;
            tracing::error!(%error, batches = group.len(), "cannot record what is out, trying again");
            tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await;
        }
        shared::failpoint::reach("c.published.committed");
        metrics::histogram!("tidegate_record_seconds").record(started.elapsed());
        let _ = answers.send(Answer::Recorded(group)).await;
    }
}

/// Adds what is confirmed by now.
fn add_confirmed<T>(group: &mut Vec<T>, confirmed: &mut mpsc::Receiver<Vec<T>>) {
    while group.len() < GROUP
        && let Ok(more) = confirmed.try_recv()
    {
        group.extend(more);
    }
}
