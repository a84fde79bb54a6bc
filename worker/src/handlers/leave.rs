//! Leave for calls under a pipeline's limits: asked for before a command or an endpoint gets a batch, and told
//! afterwards how it went, so that an adaptive limit finds its rate.

use shared::ask::{About, Said, Want};
use shared::name::LimitName;

use crate::handler::{BatchContext, HandlerError, Output};
use crate::permits::Permit;

/// The limits that each batch of a pipeline falls under.
#[derive(Debug, Clone)]
pub(super) struct Leave {
    limits: Vec<LimitName>,
}

impl Leave {
    pub(super) fn under(limits: &[LimitName]) -> Self {
        Self {
            limits: limits.to_vec(),
        }
    }

    /// Waits until all limits give leave for one call.
    pub(super) async fn ask(&self, ctx: &BatchContext) -> Result<Option<Permit>, HandlerError> {
        if self.limits.is_empty() {
            return Ok(None);
        }
        let want = |limit: &LimitName| Want {
            limit: limit.clone(),
            key: ctx.batch.key.clone(),
            n: 1,
        };
        let wants = self.limits.iter().map(want).collect();
        ctx.permit_all(wants).await.map(Some)
    }

    /// Says whether the call was accepted or too fast. Any other end says nothing about limits.
    pub(super) fn tell(
        &self,
        ctx: &BatchContext,
        permit: Option<Permit>,
        result: &Result<Output, HandlerError>,
    ) {
        let Some(permit) = permit else { return };
        let said = match result {
            Ok(_) => Said::Accepted,
            Err(HandlerError::Throttled { after, .. }) => Said::TooFast {
                retry_after: Some(*after),
                persistent: None,
            },
            Err(_) => return,
        };
        let about = |limit: &LimitName| About {
            limit: limit.clone(),
            key: ctx.batch.key.clone(),
        };
        let about = self.limits.iter().map(about).collect();
        ctx.permits.report(permit, about, said);
    }
}
