//! What a worker tells the coordinators about itself, every [`INTERVAL`], over `tidegate.presence`.

use std::collections::HashMap;
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
/// How long a worker repeats what it has given back, and a coordinator remembers it: the broker hands it to
/// somebody else in milliseconds, or as soon as it can be reached again.
pub const RETURNED_FOR: Duration = Duration::from_mins(1);

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
    /// How far those batches have come whose handlers say so.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub progress: HashMap<BatchId, Progress>,
    /// Whether it has stopped consuming and finishes what it holds.
    pub draining: bool,
    /// Whether this is its last message.
    #[serde(default)]
    pub leaving: bool,
    /// What it gave back alive, or lost with its connection, in the last minute: none of it killed this worker.
    /// Said before the broker is told, so that whoever gets it next need not be afraid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub returned: Vec<BatchId>,
    /// How many lanes it believes there are; 0 when it does not say.
    #[serde(default)]
    pub lanes: u16,
    /// Its resident memory in bytes; 0 when it does not say.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Its clock, in milliseconds since 1970; 0 when it does not say.
    #[serde(default)]
    pub clock_ms: u64,
}

/// How far a batch has come, in units of its handler: rows, pages, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// So many are done.
    pub done: u64,
    /// Of so many, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_worker_is_understood() {
        let older = r#"{"worker":"w","version":"0.1.0","pipelines":["a"],"slots":4,"holding":[],"draining":false}"#;
        let presence: Presence = serde_json::from_str(older).unwrap();
        assert_eq!(
            (presence.lanes, presence.clock_ms, presence.memory_bytes),
            (0, 0, 0)
        );
        assert!(presence.returned.is_empty() && presence.progress.is_empty() && !presence.leaving);
    }
}
