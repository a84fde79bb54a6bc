//! First stage, one batch a property: may it be read ([`check_access`]), which days exist ([`probe`]), and
//! which slices are missing or due for another look ([`slices`]). Emits one `gsc.slice` batch for each of
//! those, newest day first.

mod probe;
mod range;
mod slices;
mod suggest;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::search_console::{PlanPayload, normalize_property};

use super::Shared;
use super::api::{Api, Calls};
use super::store::PropertyState;
use crate::handler::{BatchContext, Handler, HandlerError, Output};
use probe::probe_all;
use range::range;
use slices::Plan;
use suggest::did_you_mean;

/// The handler of `gsc.plan`.
pub struct PlanHandler {
    pub(super) shared: Arc<Shared>,
}

#[async_trait]
impl Handler for PlanHandler {
    type Input = PlanPayload;

    async fn handle(&self, input: PlanPayload, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let api = self.shared.api()?;
        let property = match normalize_property(&input.property) {
            Ok(property) => property,
            Err(error) => {
                return Err(self
                    .name_candidates(api, ctx, &input.property, error.to_string())
                    .await);
            }
        };
        let mut calls = Calls::new(api, ctx, &property);
        check_access(&mut calls).await?;

        let today = self.shared.calendar.today();
        let types = if input.types.is_empty() {
            &self.shared.config.types
        } else {
            &input.types
        };
        let probes = match range(input.days, today) {
            Some(range) => probe_all(&calls, types, range, today).await?,
            None => Vec::new(),
        };
        let plan = Plan {
            shared: &self.shared,
            input: &input,
            property: &property,
            today,
        };
        let (payloads, already_final) = plan.slices(&calls, &probes).await?;

        let mut statistics = calls.statistics();
        *statistics.entry("api_calls".into()).or_default() +=
            probes.iter().map(|p| p.calls).sum::<u64>();
        let repeated: u64 = probes.iter().map(|p| p.repeated).sum();
        if repeated > 0 {
            *statistics.entry("api_retries".into()).or_default() += repeated;
        }
        statistics.insert("slices_already_final".into(), already_final);
        let follow_ups = plan.follow_ups(&payloads)?;
        statistics.insert("follow_ups".into(), follow_ups.len() as u64);
        Ok(Output {
            follow_ups,
            statistics,
            ..Output::default()
        })
    }
}

impl PlanHandler {
    /// A property that is none: says which ones this credential knows and may have been meant.
    async fn name_candidates(
        &self,
        api: &Api,
        ctx: &BatchContext,
        written: &str,
        problem: String,
    ) -> HandlerError {
        let mut calls = Calls::new(api, ctx, written);
        let known = match calls.sites().await {
            Ok(sites) => did_you_mean(written, &sites),
            // The property is wrong whatever the list says.
            Err(_) => String::new(),
        };
        HandlerError::fail("unknown_property", format!("{problem}{known}"))
    }
}

/// Looks the property up among those that this credential can see.
async fn check_access(calls: &mut Calls<'_>) -> Result<(), HandlerError> {
    let sites = calls.sites().await?;
    let property = calls.property;
    match sites.iter().find(|site| site.site_url == property) {
        Some(site) if site.is_readable() => note_active(calls).await,
        Some(_) => {
            let words = format!(
                "{property} is not verified for this credential: verify it, or add the credential as a user"
            );
            Err(calls.permission_lost(words).await)
        }
        None => {
            let words = format!(
                "{property} is not among the properties of this credential{}",
                did_you_mean(property, &sites)
            );
            match calls.api.store.property(property).await {
                // It was readable once.
                Ok(Some(_)) => Err(calls.permission_lost(words).await),
                Ok(None) => Err(HandlerError::fail("unknown_property", words)),
                Err(error) => Err(HandlerError::retry(error.to_string())),
            }
        }
    }
}

/// The property can be read; a quota that is known to end later still holds.
async fn note_active(calls: &Calls<'_>) -> Result<(), HandlerError> {
    let before = calls.api.store.property(calls.property).await;
    match before.map_err(|error| HandlerError::retry(error.to_string()))? {
        Some(PropertyState::Active) => {}
        Some(PropertyState::QuotaLimited { until, .. }) if until > Timestamp::now() => {}
        _ => calls.note(&PropertyState::Active).await,
    }
    Ok(())
}
