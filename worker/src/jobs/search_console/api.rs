//! One call to the API until it has an answer or a verdict: permit, token, request, classification, and
//! what each class asks for. `plan` and `slice` say what to call; how faults are met is here alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use shared::backoff::Backoff;
use shared::name::Key;
use shared::outcome::Statistics;
use tokio::time::Instant;

use super::calendar::Calendar;
use super::classify::{Class, classify};
use super::client::{Call, Client, Query, Site, Sites};
use super::rate::{Answer, Limits, Weight};
use super::slice_rows::SliceId;
use super::store::{PropertyState, SearchAnalyticsStore};
use super::token::{TokenError, TokenSource};
use crate::handler::{BatchContext, HandlerError};
use crate::permits::{NoPermit, Permit};

/// Waits between tries of one call.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// Tries of one call before the batch goes back to the coordinator.
const MAX_TRIES: u32 = 6;
/// Longest time for one call, whatever the batch's deadline.
const CALL_TIMEOUT: Duration = Duration::from_mins(3);
/// How long an answer of `sites.list` is good for: a run over a thousand properties asks once a minute,
/// not a thousand times (200 calls a minute and user are allowed).
const SITES_LIFE: Duration = Duration::from_mins(1);

/// The API with everything that a call needs.
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) tokens: TokenSource,
    pub(super) limits: Limits,
    pub(super) calendar: Calendar,
    pub(super) store: Arc<dyn SearchAnalyticsStore>,
    pub(super) sites: tokio::sync::Mutex<Option<(Instant, Arc<[Site]>)>>,
    /// Which quota end was noted for a property, so that each is noted once and not by every batch.
    pub(super) noted: Mutex<HashMap<String, Timestamp>>,
}

/// The calls of one batch, counted.
pub(super) struct Calls<'a> {
    pub(super) api: &'a Api,
    pub(super) ctx: &'a BatchContext,
    pub(super) property: &'a str,
    pub(super) made: u64,
    pub(super) repeated: u64,
}

/// Why an exchange gave nothing to use.
enum Trouble {
    Transient(String),
    Unauthorized(String),
    Limited(Answer, String),
    Final(HandlerError),
}

impl<'a> Calls<'a> {
    pub(super) fn new(api: &'a Api, ctx: &'a BatchContext, property: &'a str) -> Self {
        Self {
            api,
            ctx,
            property,
            made: 0,
            repeated: 0,
        }
    }

    /// What the run's totals are made of.
    pub(super) fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::from([("api_calls".to_owned(), self.made)]);
        if self.repeated > 0 {
            statistics.insert("api_retries".to_owned(), self.repeated);
        }
        statistics
    }

    /// `searchanalytics.query`; `read` takes the body apart, and an error of it is a broken answer.
    pub(super) async fn query<T>(
        &mut self,
        query: &Query,
        weight: Weight,
        read: impl FnMut(&[u8]) -> Result<T, serde_json::Error>,
    ) -> Result<T, HandlerError> {
        let call = self.api.client.query(self.property, query);
        self.call(&call, Some(weight), read).await
    }

    /// `sites.list`, at most a minute old.
    pub(super) async fn sites(&mut self) -> Result<Arc<[Site]>, HandlerError> {
        // The lock is held during the call, so that many batches that start together cost one.
        let mut cached = self.api.sites.lock().await;
        if let Some((fetched_at, sites)) = &*cached
            && fetched_at.elapsed() < SITES_LIFE
        {
            return Ok(Arc::clone(sites));
        }
        let call = self.api.client.sites();
        let sites: Sites = self
            .call(&call, None, |body| serde_json::from_slice(body))
            .await?;
        let sites: Arc<[Site]> = sites.site_entry.into();
        *cached = Some((Instant::now(), Arc::clone(&sites)));
        Ok(sites)
    }

    async fn call<T>(
        &mut self,
        call: &Call,
        weight: Option<Weight>,
        mut read: impl FnMut(&[u8]) -> Result<T, serde_json::Error>,
    ) -> Result<T, HandlerError> {
        let mut tries = 0;
        let mut refused_token = None;
        loop {
            let token = match &refused_token {
                Some(refused) => self.api.tokens.replace(refused).await,
                None => self.api.tokens.current().await,
            };
            let mut leave = None;
            let trouble = match token {
                Err(error) => self.token_trouble(error).await,
                Ok(token) => {
                    // Right before the call: a permit is for now.
                    if let Some(weight) = weight {
                        leave = Some((weight, self.permit(weight).await?));
                    }
                    let trouble = match self.exchange(call, token.expose(), &mut read).await {
                        Ok(value) => {
                            self.report(leave, Answer::Accepted);
                            return Ok(value);
                        }
                        Err(trouble) => trouble,
                    };
                    // One forced refresh; a second refusal right after it is the credential's fault.
                    match trouble {
                        Trouble::Unauthorized(_) if refused_token.is_none() => {
                            refused_token = Some(token);
                            self.repeated += 1;
                            continue;
                        }
                        Trouble::Unauthorized(words) => {
                            Trouble::Final(HandlerError::fail("credentials_refused", words))
                        }
                        other => other,
                    }
                }
            };
            // What the next refusal meets is another token, or another time.
            refused_token = None;
            match trouble {
                Trouble::Final(error) => return Err(error),
                // No attempt is used up: the next permit waits as long as the limit says, or says it is too long.
                Trouble::Limited(answer, words) => {
                    tracing::debug!(property = self.property, answer = ?answer, error = words, "limited by google");
                    if leave.is_none() {
                        return Err(HandlerError::Throttled {
                            reason: words,
                            after: SITES_LIFE,
                        });
                    }
                    self.report(leave, answer);
                }
                Trouble::Transient(error) | Trouble::Unauthorized(error) => {
                    tries += 1;
                    self.wait_for_next_try(tries, error).await?;
                }
            }
            self.repeated += 1;
        }
    }

    async fn exchange<T>(
        &mut self,
        call: &Call,
        token: &str,
        read: &mut impl FnMut(&[u8]) -> Result<T, serde_json::Error>,
    ) -> Result<T, Trouble> {
        let within = self.time_left().min(CALL_TIMEOUT);
        self.made += 1;
        let answer = self
            .api
            .client
            .send(call, token, within)
            .await
            .map_err(Trouble::Transient)?;
        if answer.status == 200 {
            return read(&answer.body)
                .map_err(|e| Trouble::Transient(format!("the answer cannot be read: {e}")));
        }
        let (class, words) = classify(answer.status, &answer.body);
        Err(match class {
            Class::Transient => Trouble::Transient(words),
            Class::Unauthorized => Trouble::Unauthorized(words),
            Class::Rate => Trouble::Limited(Answer::TooFast(answer.retry_after), words),
            Class::Load => Trouble::Limited(Answer::LoadUsedUp, words),
            Class::Daily => Trouble::Limited(Answer::DayUsedUp, words),
            Class::NotEnabled => Trouble::Final(HandlerError::fail("api_not_enabled", words)),
            Class::Permission => Trouble::Final(self.permission_lost(words).await),
            Class::BadRequest => Trouble::Final(HandlerError::fail(
                "bad_request",
                format!("{words}; request: {}", call.describe()),
            )),
        })
    }

    async fn permit(&self, weight: Weight) -> Result<Permit, HandlerError> {
        let wants = self.api.limits.wants(&self.key(), weight);
        let pipeline = &self.ctx.batch.pipeline;
        let deadline = Instant::from_std(self.ctx.deadline);
        let refusal = tokio::select! {
            permit = self.ctx.permits.permit(pipeline, wants, deadline) => match permit {
                Ok(permit) => return Ok(permit),
                Err(refusal) => refusal,
            },
            () = self.ctx.cancelled.cancelled() => return Err(cancelled()),
        };
        self.note_quota(&refusal).await;
        Err(refusal.into())
    }

    fn report(&self, leave: Option<(Weight, Permit)>, answer: Answer) {
        let Some((weight, permit)) = leave else {
            return;
        };
        let Api {
            limits, calendar, ..
        } = self.api;
        let (about, said) = limits.said(&self.key(), weight, answer, calendar, Timestamp::now());
        self.ctx.permits.report(permit, about, said);
    }

    /// Whose limits count. The property is that of the batch, unless somebody submitted it under another key.
    fn key(&self) -> Key {
        Key::new(self.property).unwrap_or_else(|_| self.ctx.batch.key.clone())
    }

    /// Waits a random while, unless the tries or the time are used up.
    async fn wait_for_next_try(&self, tries: u32, error: String) -> Result<(), HandlerError> {
        let wait = BACKOFF.draw(tries);
        if tries >= MAX_TRIES || wait >= self.time_left() {
            return Err(HandlerError::retry(format!(
                "{error} (after {tries} tries)"
            )));
        }
        tracing::debug!(
            property = self.property,
            error,
            tries,
            "call failed, trying again"
        );
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.ctx.cancelled.cancelled() => Err(cancelled()),
        }
    }

    async fn token_trouble(&self, error: TokenError) -> Trouble {
        match error {
            TokenError::Transient(_) => Trouble::Transient(error.to_string()),
            TokenError::Refused(_) => {
                Trouble::Final(HandlerError::fail("credentials_refused", error.to_string()))
            }
            TokenError::ReauthRequired(_) => {
                let state = PropertyState::ReauthRequired {
                    detail: error.to_string(),
                };
                self.note(&state).await;
                Trouble::Final(HandlerError::fail("reauth_required", error.to_string()))
            }
        }
    }

    /// Notes the loss and gives the verdict on the batch.
    pub(super) async fn permission_lost(&self, words: String) -> HandlerError {
        self.note(&PropertyState::PermissionLost {
            detail: words.clone(),
        })
        .await;
        HandlerError::fail("permission_lost", words)
    }

    async fn note_quota(&self, refusal: &NoPermit) {
        let NoPermit::Parked {
            until: Some(until),
            reason,
            ..
        } = refusal
        else {
            return;
        };
        let until = *until;
        let before = {
            let mut noted = self
                .api
                .noted
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            noted.insert(self.property.to_owned(), until)
        };
        if before != Some(until) {
            self.note(&PropertyState::QuotaLimited {
                until,
                detail: reason.clone(),
            })
            .await;
        }
    }

    /// A state that cannot be noted must not change the verdict on the batch: it is noted again by the next one.
    pub(super) async fn note(&self, state: &PropertyState) {
        if let Err(error) = self.api.store.note_property(self.property, state).await {
            tracing::warn!(property = self.property, state = state.as_str(), error = %error, "property state not noted");
        }
    }

    /// Notes that a slice is lost, when it is.
    pub(super) async fn note_verdict(&self, slice: &SliceId, error: &HandlerError) {
        let HandlerError::Fail { error, .. } = error else {
            return;
        };
        if let Err(error) = self.api.store.note_failed_slice(slice, error).await {
            tracing::warn!(property = self.property, error = %error, "failed slice not noted");
        }
    }

    fn time_left(&self) -> Duration {
        self.ctx
            .deadline
            .saturating_duration_since(std::time::Instant::now())
    }
}

fn cancelled() -> HandlerError {
    HandlerError::retry("the attempt was cancelled")
}
