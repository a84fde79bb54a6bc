//! What a worker tells the coordinators about itself, every [`INTERVAL`], over `tidegate.presence`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::BatchId;
use crate::name::{Instance, PipelineName};

/// `type` of a presence message.
pub const PRESENCE_TYPE: &str = "tidegate.presence.v1";
/// How often a worker speaks.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// A worker that was silent for this long is taken for gone: three missed messages and some air.
pub const GONE_AFTER: Duration = Duration::from_secs(7);

/// A worker's word on itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// Who speaks.
    pub worker: Instance,
    /// Its program version.
    pub version: String,
    /// The pipelines that it serves.
    pub pipelines: Vec<PipelineName>,
    /// How many batches it runs at once.
    pub slots: u32,
    /// What it holds: deliveries that are neither acked nor nacked.
    pub holding: Vec<BatchId>,
    /// Whether it has stopped consuming and finishes what it holds.
    pub draining: bool,
    /// Whether this is its last message.
    #[serde(default)]
    pub leaving: bool,
}
