//! What the stages tell the dispatcher, so that it looks at the ledger again. A notice carries no truth of
//! its own: the ledger has it all, and a dispatcher that missed every notice would find out at its next start.

use std::collections::HashMap;

use jiff::Timestamp;
use shared::id::RunId;
use shared::name::{Key, PipelineName};

use crate::ledger::{Backlog, Settled};

/// Something changed that may let batches go out.
#[derive(Debug)]
pub enum Notice {
    /// A run was accepted.
    Accepted(RunId),
    /// Outcomes were settled: windows have room, follow-ups and retries are pending.
    Settled(Vec<Settled>),
    /// Workers came or went.
    Slots(HashMap<PipelineName, u32>),
    /// Backlogs are not empty because of an operator: a redrive.
    Pending(Vec<Backlog>),
    /// A run was cancelled or paused: nothing more of it goes out.
    Stopped(RunId),
    /// A run goes on, perhaps with another priority: what the ledger has of it counts.
    Changed(RunId),
    /// A pipeline was paused, or goes on.
    PipelinePaused(PipelineName, bool),
    /// A limit is used up until then: these pipelines' batches of this key, or of all keys, stay.
    Parked {
        /// Which pipelines.
        pipelines: Vec<PipelineName>,
        /// Whose batches; `None`: everybody's.
        key: Option<Key>,
        /// Until when. A time that has passed ends the parking.
        until: Timestamp,
    },
}
