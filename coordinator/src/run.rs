//! Runs and batches as they are shown: by the API, by the CLI, to whoever asks the ledger.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::id::{BatchId, RunId};
use shared::name::{Instance, Key, PipelineName};
use shared::outcome::Statistics;
use utoipa::ToSchema;

use crate::fleet::InHand;

/// One submission and everything that it fanned out into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub run: RunId,
    /// The pipeline of the submitted batches; follow-ups may have others.
    #[schema(value_type = String)]
    pub pipeline: PipelineName,
    /// Where it stands.
    pub state: RunState,
    /// Which of a key's runs goes first.
    pub priority: Priority,
    /// Where its batches stand.
    pub batches: BatchCounts,
    /// Attempts that failed and were tried again.
    pub retries: u64,
    /// Rows that its completed batches stand for in the sink.
    pub rows: u64,
    /// What else its handlers counted, such as `api_calls`.
    #[serde(flatten)]
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    pub statistics: Statistics,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its last batch became final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

impl Run {
    /// Whether nothing of it is pending or out any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let is_final = matches!(self.state, RunState::Completed | RunState::Cancelled);
        is_final && self.batches.pending + self.batches.out == 0
    }
}

/// How many batches of a run are in each state. `accepted` is always the sum of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchCounts {
    /// All, follow-ups included.
    pub accepted: u64,
    /// Waiting to be dispatched, now or at a later time.
    pub pending: u64,
    /// Published and not settled.
    pub out: u64,
    /// Done.
    pub completed: u64,
    /// Given up, kept with their error.
    pub dead: u64,
    /// Called off.
    pub cancelled: u64,
}

impl BatchCounts {
    /// Batches that need nothing more.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.completed + self.dead + self.cancelled
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Batches are pending or out.
    Running,
    /// As running, but nothing more of it goes out until it is resumed.
    Paused,
    /// Every batch is final; `batches` says how each ended.
    Completed,
    /// It was called off.
    Cancelled,
}

/// Which of a key's runs goes first.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After the others.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before the others.
    High,
}

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// Waiting to be dispatched.
    Pending,
    /// Published and not settled.
    Out,
    /// Done.
    Completed,
    /// Given up.
    Dead,
    /// Called off.
    Cancelled,
}

/// One batch with all that is known of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BatchDetail {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub batch: BatchId,
    /// Its run.
    #[schema(value_type = uuid::Uuid)]
    pub run: RunId,
    /// Its pipeline.
    #[schema(value_type = String)]
    pub pipeline: PipelineName,
    /// Whose work it is.
    #[schema(value_type = String)]
    pub key: Key,
    /// Where it stands.
    pub state: BatchState,
    /// How often it was dispatched.
    pub attempts: u32,
    /// How many of them failed, since it was submitted or redriven.
    pub failures: u32,
    /// Pending: not dispatched before. Otherwise: when the state was entered.
    pub since: Timestamp,
    /// Why it is dead or waits, in one closed word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same, for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to work on.
    #[schema(value_type = serde_json::Value)]
    pub payload: Box<RawValue>,
    /// Attempts that ended, oldest first; of many, the last ones.
    pub history: Vec<AttemptRecord>,
    /// Who has it now. That is not in the ledger: workers say so every 2 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_hand: Option<InHand>,
}

/// One batch of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchSummary {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub batch: BatchId,
    /// Its pipeline.
    #[schema(value_type = String)]
    pub pipeline: PipelineName,
    /// Whose work it is.
    #[schema(value_type = String)]
    pub key: Key,
    /// Where it stands.
    pub state: BatchState,
    /// How often it was dispatched.
    pub attempts: u32,
    /// Pending: not dispatched before. Otherwise: when the state was entered.
    pub since: Timestamp,
}

/// Where the batches of a pipeline stand, over all unfinished runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineCounts {
    /// Which pipeline.
    pub pipeline: PipelineName,
    /// Waiting to be dispatched, now or at a later time.
    pub pending: u64,
    /// Published and not settled.
    pub out: u64,
}

/// A pipeline as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PipelineView {
    /// Which pipeline.
    #[schema(value_type = String)]
    pub pipeline: PipelineName,
    /// Whether the coordinator's config has it. If not, its batches wait until it has.
    pub configured: bool,
    /// Whether nothing of it goes out until it is resumed.
    pub paused: bool,
    /// Batches waiting to be dispatched, now or at a later time.
    pub pending: u64,
    /// Batches published and not settled.
    pub out: u64,
    /// Slots of live workers that serve it.
    pub slots: u32,
    /// How many of its batches may be out at a time.
    pub window: u32,
}

/// An attempt that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptRecord {
    /// Which one.
    pub attempt: u32,
    /// Who worked on it, if somebody said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub worker: Option<Instance>,
    /// When it was recorded as out; `None` when its outcome came first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_at: Option<Timestamp>,
    /// When it was settled.
    pub settled_at: Timestamp,
    /// How long its handler ran, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// What it came to, in one closed word: `completed`, `retry`, `throttled`, `lost`, a reason of death, …
    pub verdict: String,
    /// The same, for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A batch that was given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeadBatch {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub batch: BatchId,
    /// Its run.
    #[schema(value_type = uuid::Uuid)]
    pub run: RunId,
    /// Its pipeline.
    #[schema(value_type = String)]
    pub pipeline: PipelineName,
    /// Whose work it was.
    #[schema(value_type = String)]
    pub key: Key,
    /// Why, in one closed word: `attempts_exhausted`, `permission_lost`, …
    pub reason: String,
    /// Why, for a person.
    pub error: String,
    /// How often it was dispatched.
    pub attempts: u32,
    /// When it was given up.
    pub died_at: Timestamp,
}

macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// The word that stands for it in the ledger, the API and the CLI.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord { word: word.to_owned(), known: &[$($word),+] }),
                }
            }
        }
    };
}
words!(RunState { Running = "running", Paused = "paused", Completed = "completed", Cancelled = "cancelled" });
words!(BatchState { Pending = "pending", Out = "out", Completed = "completed", Dead = "dead", Cancelled = "cancelled" });
words!(Priority { Low = "low", Normal = "normal", High = "high" });

/// A word that stands for nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not one of {}", known.join(", "))]
pub struct UnknownWord {
    word: String,
    known: &'static [&'static str],
}
