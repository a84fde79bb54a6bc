//! When a handler should give up.

use tokio::time::sleep_until;

use crate::handler::BatchContext;

/// Why a batch is not waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    DeadlineReached,
    CalledOff,
}

/// Returns when the batch is not waited for any longer.
pub(super) async fn stop_wanted(ctx: &BatchContext) -> Stop {
    tokio::select! {
        () = ctx.cancelled.cancelled() => {
            let late = std::time::Instant::now() >= ctx.deadline;
            if late { Stop::DeadlineReached } else { Stop::CalledOff }
        }
        () = sleep_until(ctx.deadline.into()) => Stop::DeadlineReached,
    }
}
