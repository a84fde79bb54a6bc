//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Asks `probe` until it has an answer. `what` completes the sentence "waited … for …".
///
/// An error of the probe ends the wait: return `Ok(None)` for what may still come.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(answer) = probe()
            .await
            .with_context(|| format!("waiting for {what}"))?
        {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            return Err(timed_out(what, limit));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The same, for code that is not async.
pub fn until_blocking<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(answer) = probe().with_context(|| format!("waiting for {what}"))? {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            return Err(timed_out(what, limit));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn timed_out(what: &str, limit: Duration) -> anyhow::Error {
    anyhow!("waited {} s in vain for {what}", limit.as_secs_f32())
}
