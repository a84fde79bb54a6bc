//! What the stages tell the dispatcher, so that it looks at the ledger again. A notice carries no truth of
//! its own: the ledger has it all, and a dispatcher that missed every notice would find out at its next start.

use std::collections::HashMap;

use shared::id::RunId;
use shared::name::PipelineName;

use crate::ledger::Settled;

/// Something changed that may let batches go out.
#[derive(Debug)]
pub enum Notice {
    /// A run was accepted.
    Accepted(RunId),
    /// Outcomes were settled: windows have room, follow-ups and retries are pending.
    Settled(Vec<Settled>),
    /// Workers came or went.
    Slots(HashMap<PipelineName, u32>),
}
