//! What all requests share: configuration, clock, tokens, quotas, faults, counters, prepared pages.
//!
//! Each part has a standard mutex of its own, held for a few instructions and never across an await.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::auth::Tokens;
use crate::cache::Cache;
use crate::clock::VirtualClock;
use crate::config::{Config, ConfigError};
use crate::fault::Draws;
use crate::quota::Quotas;
use crate::stats::Stats;

/// The shared state of one emulator.
#[derive(Debug)]
pub(crate) struct App {
    config: RwLock<Arc<Config>>,
    pub(crate) clock: VirtualClock,
    pub(crate) cache: Cache,
    tokens: Mutex<Tokens>,
    quotas: Mutex<Quotas>,
    draws: Mutex<Draws>,
    stats: Mutex<Stats>,
}

/// A panic while counting leaves counters that are slightly off, which is no reason to stop serving.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            clock: VirtualClock::new(config.now, config.clock_runs),
            cache: Cache::new(config.cache_mb),
            tokens: Mutex::default(),
            quotas: Mutex::new(Quotas::new()),
            draws: Mutex::default(),
            stats: Mutex::default(),
            config: RwLock::new(Arc::new(config)),
        }
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes single keys while running. The clock moves only when `now` is among them.
    pub(crate) fn patch(
        &self,
        change: serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), ConfigError> {
        let sets_clock = change.contains_key("now");
        let sets_faults = change.contains_key("faults") || change.contains_key("fault_seed");
        let config = self.config().patched(change)?;
        if sets_clock {
            self.clock.set(config.now);
        }
        self.clock.run(config.clock_runs);
        if sets_faults {
            *self.draws() = Draws::default();
        }
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(())
    }

    /// Counters, quota windows and the counting of faults start again; tokens and clock stay.
    pub(crate) fn reset(&self) {
        self.stats().reset();
        *self.quotas() = Quotas::new();
        *self.draws() = Draws::default();
    }

    /// A new access token of `user`.
    pub(crate) fn issue_token(&self, user: &str) -> String {
        let life = Duration::from_secs(self.config().token_life_s);
        self.stats().tokens += 1;
        self.tokens().issue(user, life, Instant::now())
    }

    pub(crate) fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }

    pub(crate) fn quotas(&self) -> MutexGuard<'_, Quotas> {
        lock(&self.quotas)
    }

    pub(crate) fn draws(&self) -> MutexGuard<'_, Draws> {
        lock(&self.draws)
    }

    pub(crate) fn stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }
}
