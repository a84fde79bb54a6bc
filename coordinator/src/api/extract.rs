//! What requests carry, read and checked: names in the path, parameters in the query. Whatever is wrong is
//! a [`Problem`] that names it.

use std::num::NonZeroU32;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use shared::id::{BatchId, RunId};
use shared::name::PipelineName;

use super::problem::Problem;

/// What is said about a run that is not there.
pub(super) const UNKNOWN_RUN: &str =
    "there is no such run; `tidegate run list` shows those there are";

/// Something that a path names.
pub(super) trait Named: Sized {
    /// What is said when there is nothing of this name.
    const UNKNOWN: &'static str;
    /// Reads the name; `None` when there cannot be anything of this name.
    fn read(name: &str) -> Option<Self>;
}

impl Named for RunId {
    const UNKNOWN: &'static str = UNKNOWN_RUN;
    fn read(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}

impl Named for BatchId {
    const UNKNOWN: &'static str = "there is no such batch";
    fn read(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}

impl Named for PipelineName {
    const UNKNOWN: &'static str =
        "there is no such pipeline; `tidegate pipeline list` shows those there are";
    fn read(name: &str) -> Option<Self> {
        Self::new(name).ok()
    }
}

/// The one name in a path.
pub(super) struct Name<T>(pub(super) T);

impl<T: Named, S: Send + Sync> FromRequestParts<S> for Name<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let unknown = || Problem::not_found(T::UNKNOWN);
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| unknown())?;
        T::read(&name).map(Self).ok_or_else(unknown)
    }
}

/// The parameters of the query. Types refuse unknown ones.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        match read {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => {
                let text = rejection.body_text();
                let problem = text
                    .split_once(": ")
                    .map_or(text.as_str(), |(_, rest)| rest);
                Err(Problem::bad_parameter(problem))
            }
        }
    }
}

/// For requests that take no parameter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// How many entries a list shows: 1 to 1,000.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u32")]
pub(super) struct Limit(u32);

impl Limit {
    const MAX: u32 = 1_000;

    pub(super) fn get(self) -> u32 {
        self.0
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(100)
    }
}

impl TryFrom<u32> for Limit {
    type Error = String;

    fn try_from(limit: u32) -> Result<Self, String> {
        if (1..=Self::MAX).contains(&limit) {
            Ok(Self(limit))
        } else {
            Err(format!("must be 1 to {}, is {limit}", Self::MAX))
        }
    }
}

/// Batches a second: 1 to 100,000.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u32")]
pub(super) struct Rate(NonZeroU32);

impl Rate {
    pub(super) fn get(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for Rate {
    type Error = String;

    fn try_from(rate: u32) -> Result<Self, String> {
        let max = crate::operations::MAX_RATE;
        NonZeroU32::new(rate)
            .filter(|rate| rate.get() <= max)
            .map(Self)
            .ok_or_else(|| format!("must be 1 to {max} a second, is {rate}"))
    }
}
