//! What the limits need besides answering: the dispatcher keeps back whose calls would only wait, and the
//! ledger remembers what a restart must not forget.
//!
//! After a stop in good order the lines go on where they were. After a crash every key that was or may have been
//! busy starts as if it had just used up what it may do at once, so no restart makes a burst.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::SharedLimits;
use crate::ledger::{LedgerError, Memory, MemoryLedger};
use crate::notice::Notice;

/// How often the ledger is told what to remember.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// How often at most it is told in between, because a line has become longer than it knows.
const SAVE_AT_MOST_EVERY: Duration = Duration::from_millis(200);

/// The stage.
pub struct LimitStage {
    limits: SharedLimits,
    ledger: Arc<dyn MemoryLedger>,
    notices: mpsc::Sender<Notice>,
    draining: CancellationToken,
    /// What the ledger has.
    saved: BTreeMap<String, String>,
}

impl LimitStage {
    /// Reads what was remembered; from then on `limits` may answer.
    pub async fn start(
        limits: SharedLimits,
        ledger: Arc<dyn MemoryLedger>,
        notices: mpsc::Sender<Notice>,
        draining: CancellationToken,
    ) -> Result<Self, LedgerError> {
        let saved = ledger.remembered(Memory::Limit).await?;
        limits
            .limiter()
            .recall(&saved, 2 * SAVE_EVERY, limits.now());
        let mut stage = Self {
            limits,
            ledger,
            notices,
            draining,
            saved,
        };
        // From here on a crash is a crash, whatever was remembered before.
        stage.save(false).await?;
        Ok(stage)
    }

    /// Runs until draining; then nothing more is granted.
    pub async fn run(mut self) -> Result<(), Infallible> {
        let mut save = tokio::time::interval(SAVE_EVERY);
        let mut saved_at = Instant::now();
        let mut look = tokio::time::interval(SAVE_AT_MOST_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.draining.is_cancelled() {
            let news = self.limits.limiter().take_news();
            for notice in news {
                // The dispatcher ends before this stage only while draining, and then needs no news.
                let _ = self.notices.send(notice).await;
            }
            tokio::select! {
                () = self.limits.inner.wake.notified() => {
                    if !self.runs_ahead() || saved_at.elapsed() < SAVE_AT_MOST_EVERY {
                        continue;
                    }
                }
                _ = save.tick() => self.limits.limiter().forget(self.limits.now()),
                _ = look.tick() => if !self.runs_ahead() {
                    continue;
                },
                () = self.draining.cancelled() => break,
            }
            self.save_or_say(false).await;
            saved_at = Instant::now();
        }
        self.save_or_say(true).await;
        Ok(())
    }

    fn runs_ahead(&self) -> bool {
        self.limits.limiter().runs_ahead()
    }

    async fn save_or_say(&mut self, stopped: bool) {
        if let Err(error) = self.save(stopped).await {
            tracing::warn!(%error, "the limits are not remembered; a restart would start slowly");
        }
    }

    async fn save(&mut self, stopped: bool) -> Result<(), LedgerError> {
        let now = self.limits.now();
        let mut changed = self.limits.limiter().remember(now, stopped);
        changed.retain(|name, value| self.saved.get(name) != Some(value));
        if !changed.is_empty() {
            self.ledger.remember(Memory::Limit, &changed).await?;
            self.saved.append(&mut changed);
        }
        Ok(())
    }
}
