//! Reload: on SIGHUP the configuration is read again. What can change while batches run does; of the rest the log
//! says that it needs a restart.

use std::convert::Infallible;
use std::path::PathBuf;

use shared::config::{Config, ConfigError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::pace::Pace;
use crate::slots::Slots;

/// Listens for SIGHUP.
pub struct ReloadStage {
    hangups: Signal,
    /// Where the configuration is.
    file: Option<PathBuf>,
    /// What holds now.
    config: Config,
    slots: Slots,
    pace: Pace,
    draining: CancellationToken,
}

impl ReloadStage {
    /// From now on SIGHUP reloads, instead of ending the process.
    pub fn new(
        file: Option<PathBuf>,
        config: Config,
        slots: Slots,
        pace: Pace,
        draining: CancellationToken,
    ) -> std::io::Result<Self> {
        Ok(Self {
            hangups: signal(SignalKind::hangup())?,
            file,
            config,
            slots,
            pace,
            draining,
        })
    }

    /// Reloads whenever it is asked to, until the worker drains.
    pub async fn run(mut self) -> Result<(), Infallible> {
        loop {
            tokio::select! {
                Some(()) = self.hangups.recv() => {}
                () = self.draining.cancelled() => return Ok(()),
            }
            if let Err(error) = self.reload() {
                tracing::error!(%error, "SIGHUP: the configuration is wrong, the old one stays");
            }
        }
    }

    fn reload(&mut self) -> Result<(), ConfigError> {
        let fresh = Config::load(self.file.as_deref())?;
        let (new, old) = (&fresh.worker, &mut self.config.worker);
        tracing::info!(
            slots = new.slots,
            slots.before = old.slots,
            look_ahead = new.look_ahead,
            look_ahead.before = old.look_ahead,
            look_ahead_min = new.look_ahead_min,
            look_ahead_min.before = old.look_ahead_min,
            "SIGHUP: configuration read again"
        );
        self.slots.resize(new.slots);
        self.pace.set_bounds(new.look_ahead_bounds());
        old.slots = new.slots;
        (old.look_ahead, old.look_ahead_min) = (new.look_ahead, new.look_ahead_min);
        let changed = self.config.changed_sections(&fresh);
        if !changed.is_empty() {
            tracing::warn!(sections = %changed.join(", "), "these sections have changed, too: they need a restart");
        }
        Ok(())
    }
}
