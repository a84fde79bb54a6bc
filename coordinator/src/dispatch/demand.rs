//! What the stages downstream have room for. A pipeline whose follow-ups another one cannot keep up with is
//! held back, so that a run grows as fast as it is worked off.
//!
//! Holding everybody back would let one tenant's pile delay all others, so above the limit a key goes on, one
//! batch at a time, as long as nothing of it waits downstream; far above the limit nobody does. Pipelines
//! cannot feed each other in a circle (the configuration refuses that), and only work of running runs counts,
//! so what is downstream gets less by itself and nothing waits for ever.

use std::collections::BTreeMap;

use shared::config::PipelineConfig;
use shared::name::PipelineName;

/// How many times the limit may be waiting before nobody goes on.
const SHUT_AT: u64 = 4;

/// How much one pipeline may send on.
#[derive(Debug)]
pub(super) struct Demand {
    limit: u64,
    /// What is pending or out, by pipeline downstream, as of the last look.
    waiting: BTreeMap<PipelineName, u64>,
}

/// Who may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flow {
    /// Everybody.
    Open,
    /// Keys that have nothing downstream, one batch at a time.
    Trickle,
    /// Nobody.
    Shut,
}

impl Demand {
    pub(super) fn new(config: &PipelineConfig) -> Self {
        Self {
            limit: u64::from(config.downstream_limit),
            waiting: config.feeds.iter().map(|name| (name.clone(), 0)).collect(),
        }
    }

    /// The pipelines that its follow-ups go to.
    pub(super) fn feeds(&self) -> impl Iterator<Item = &PipelineName> {
        self.waiting.keys()
    }

    /// Above this, more makes no difference.
    pub(super) fn enough(&self) -> u64 {
        self.limit.saturating_mul(SHUT_AT) + 1
    }

    pub(super) fn flow(&self) -> Flow {
        let most = self.waiting.values().max().copied().unwrap_or_default();
        if most > self.limit.saturating_mul(SHUT_AT) {
            Flow::Shut
        } else if most > self.limit {
            Flow::Trickle
        } else {
            Flow::Open
        }
    }

    /// So much is waiting downstream. Whether keys that were held back should be looked at again.
    pub(super) fn report(&mut self, pipeline: &PipelineName, waiting: u64) -> bool {
        let before = self.flow();
        let Some(known) = self.waiting.get_mut(pipeline) else {
            return false;
        };
        *known = waiting;
        // While it trickles, a key may have got rid of what it had downstream.
        before == Flow::Trickle
    }
}
