//! How many batches of one pipeline may be out: enough for the live slots and the look-ahead, within bounds,
//! and none while an operator or a limit says so.

use jiff::Timestamp;
use shared::config::PipelineConfig;

/// The window of one pipeline.
#[derive(Debug)]
pub(super) struct Window {
    config: PipelineConfig,
    /// Slots of live workers that take its work.
    pub(super) slots: u32,
    /// How many batches have a place.
    pub(super) out: u32,
    /// An operator stopped the pipeline.
    pub(super) paused: bool,
    /// A limit that all keys share is used up until then.
    parked_until: Option<Timestamp>,
}

impl Window {
    pub(super) fn new(config: &PipelineConfig) -> Self {
        Self {
            config: config.clone(),
            slots: 0,
            out: 0,
            paused: false,
            parked_until: None,
        }
    }

    /// How many batches may be out.
    pub(super) fn size(&self) -> u32 {
        self.config.window(self.slots)
    }

    /// How many more may go out now.
    pub(super) fn room(&self, now: Timestamp) -> u32 {
        if self.paused || self.parked_until.is_some_and(|until| until > now) {
            return 0;
        }
        self.size().saturating_sub(self.out)
    }

    /// Shuts the window until then, or for longer, if it was for longer; a time that has passed opens it.
    pub(super) fn park(&mut self, until: Timestamp, now: Timestamp) {
        let longer = self.parked_until.filter(|longer| *longer > until);
        self.parked_until = if until > now {
            longer.or(Some(until))
        } else {
            None
        };
    }

    /// Opens it when the time has come.
    pub(super) fn wake(&mut self, now: Timestamp) {
        self.parked_until = self.parked_until.filter(|until| *until > now);
    }

    /// When it opens.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.parked_until
    }
}
