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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use async_trait::async_trait;
    use serde_json::value::RawValue;
    use shared::batch::Batch;
    use shared::id::{BatchId, RunId};
    use shared::name::{Attempt, Key, PipelineName};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::cursor::Cursor;
    use crate::holding::Reporter;
    use crate::permits::{NoPermit, Permits, Unlimited};

    /// Notes what is asked and told.
    #[derive(Debug, Default)]
    struct Notes(Mutex<Vec<String>>);

    #[async_trait]
    impl Permits for Notes {
        async fn permit(
            &self,
            _: &PipelineName,
            wants: Vec<Want>,
            _: tokio::time::Instant,
        ) -> Result<Permit, NoPermit> {
            for Want { limit, key, n } in wants {
                self.0.lock().unwrap().push(format!("{limit} {key} {n}"));
            }
            Ok(Unlimited::permit())
        }

        fn report(&self, _: Permit, about: Vec<About>, said: Said) {
            for About { limit, key } in about {
                self.0
                    .lock()
                    .unwrap()
                    .push(format!("{limit} {key} {said:?}"));
            }
        }
    }

    async fn noted(limits: &[&str], result: Result<Output, HandlerError>) -> Vec<String> {
        let notes = Arc::new(Notes::default());
        let ctx = BatchContext {
            batch: Arc::new(Batch {
                id: BatchId::generate(),
                run: RunId::generate(),
                pipeline: PipelineName::new("p").unwrap(),
                key: Key::new("tenant").unwrap(),
                attempt: Attempt::new(1),
                payload: RawValue::NULL.to_owned(),
            }),
            deadline: Instant::now() + Duration::from_mins(1),
            cancelled: CancellationToken::new(),
            permits: notes.clone(),
            saved: Cursor::default(),
            reporter: Reporter::default(),
        };
        let limits: Vec<LimitName> = limits
            .iter()
            .map(|name| LimitName::new(name).unwrap())
            .collect();
        let leave = Leave::under(&limits);
        let permit = leave.ask(&ctx).await.unwrap();
        leave.tell(&ctx, permit, &result);
        notes.0.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn limits_are_asked_and_told_only_what_is_about_them() {
        assert_eq!(
            noted(&[], Ok(Output::default())).await,
            Vec::<String>::new()
        );
        let accepted = noted(&["a", "b"], Ok(Output::default())).await;
        assert_eq!(
            accepted,
            [
                "a tenant 1",
                "b tenant 1",
                "a tenant Accepted",
                "b tenant Accepted"
            ]
        );
        let throttled = HandlerError::Throttled {
            reason: "quota".to_owned(),
            after: Duration::from_secs(7),
        };
        let told = noted(&["a"], Err(throttled)).await;
        assert!(
            told[1].contains("TooFast") && told[1].contains("7s"),
            "{told:?}"
        );
        assert_eq!(
            noted(&["a"], Err(HandlerError::retry("reset"))).await,
            ["a tenant 1"]
        );
    }
}
