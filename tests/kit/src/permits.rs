//! Leave for calls, as a test says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use shared::ask::{About, Said, Want};
use shared::name::PipelineName;
use tokio::time::{Instant, sleep};
use worker::permits::{NoPermit, Permit, Permits, Unlimited};

/// The answer to one question for leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leave {
    /// Now.
    Now,
    /// After a wait.
    After(Duration),
    /// Not for so long: the handler's error becomes *throttled*.
    Parked(Duration),
    /// Nobody is there to give it: the batch goes back to the broker.
    CoordinatorAway,
}

/// Answers questions in the order of the script, and with [`Leave::Now`] after its end.
#[derive(Debug, Clone, Default)]
pub struct ScriptedPermits {
    told: Arc<Mutex<Told>>,
}

#[derive(Debug, Default)]
struct Told {
    script: VecDeque<Leave>,
    asked: Vec<Want>,
    said: Vec<Said>,
}

impl ScriptedPermits {
    /// These answers.
    pub fn new(script: impl IntoIterator<Item = Leave>) -> Self {
        let permits = Self::default();
        permits.told().script.extend(script);
        permits
    }

    /// What leave was asked for, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Want> {
        self.told().asked.clone()
    }

    /// What was said about calls, in order.
    #[must_use]
    pub fn said(&self) -> Vec<Said> {
        self.told().said.clone()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        let told = self.told.lock();
        told.expect("whoever holds it only reads and writes lists")
    }

    fn answer(&self, wants: Vec<Want>) -> Leave {
        let mut told = self.told();
        told.asked.extend(wants);
        told.script.pop_front().unwrap_or(Leave::Now)
    }
}

#[async_trait]
impl Permits for ScriptedPermits {
    async fn permit(
        &self,
        _: &PipelineName,
        wants: Vec<Want>,
        _: Instant,
    ) -> Result<Permit, NoPermit> {
        match self.answer(wants) {
            Leave::Now => Ok(Unlimited::permit()),
            Leave::After(wait) => {
                sleep(wait).await;
                Ok(Unlimited::permit())
            }
            Leave::Parked(after) => Err(NoPermit::Parked {
                reason: "parked by the test".to_owned(),
                after,
                until: None,
            }),
            Leave::CoordinatorAway => Err(NoPermit::CoordinatorAway),
        }
    }

    fn report(&self, _: Permit, _: Vec<About>, said: Said) {
        self.told().said.push(said);
    }
}
