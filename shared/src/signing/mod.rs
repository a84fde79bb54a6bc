//! Signatures on messages: who reads one knows that somebody with the fleet's key wrote it, and wrote it like this.
//!
//! An account on the broker is not enough then to have work done, to settle a batch, or to ask and answer in
//! somebody's name. Signing happens where messages are published ([`crate::broker`]), checking where a stage takes
//! one, before it is parsed. Off, nothing is signed or checked.
//!
//! It does not hide anything, and it does not say *when* a message was written: a genuine message may be delivered
//! again. Work and outcomes carry their batch and attempt, which the sink's marker and the ledger fence.
//!
//! [`keys`] says which keys there are and when they are read again, [`signature`] what a signature covers.

mod keys;
mod signature;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, LongString};
use tokio_util::sync::CancellationToken;

use keys::Keys;
pub use keys::KeysError;
pub use signature::SignatureError;

use crate::config::{ConfigError, SigningConfig, SigningMode};

/// Header that carries the signature.
pub const HEADER_SIGNATURE: &str = "x-tidegate-signature";
/// How often the folder of keys is looked at: a mounted secret is replaced without a signal.
pub const KEYS_EVERY: Duration = Duration::from_secs(5);
/// Why a message was refused, in one closed word.
pub const BAD_SIGNATURE: &str = "bad_signature";

/// What a message is for. It is signed with the message, so that one kind never passes for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// A batch, from the coordinator to a worker; in the dead queue too.
    Work,
    /// Outcomes, from a worker to the coordinator.
    Outcomes,
    /// A worker's word on itself.
    Presence,
    /// The coordinator's word to all workers.
    Control,
    /// A worker's questions.
    Questions,
    /// The coordinator's answers.
    Answers,
}

impl Purpose {
    /// The word that stands for it in signatures, metrics and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Outcomes => "outcomes",
            Self::Presence => "presence",
            Self::Control => "control",
            Self::Questions => "questions",
            Self::Answers => "answers",
        }
    }
}

/// Signs and checks, as the configuration says; cheap to clone. By default it does neither.
#[derive(Clone, Default)]
pub struct Signing(Option<Arc<On>>);

struct On {
    required: bool,
    folder: PathBuf,
    keys: RwLock<Arc<Keys>>,
    /// What was complained about since the keys were read: once is enough for the log, the metric counts.
    told: Mutex<BTreeSet<(Purpose, &'static str)>>,
}

impl Signing {
    /// Reads the keys, unless signing is off.
    ///
    /// # Errors
    /// [`ConfigError`] names `signing.keys_folder`, the file, and what is wrong with it; never a key.
    pub fn open(config: &SigningConfig) -> Result<Self, ConfigError> {
        let folder = match (config.mode, &config.keys_folder) {
            (SigningMode::Off, _) => return Ok(Self::default()),
            (_, Some(folder)) => folder.clone(),
            (_, None) => return Err(config.no_folder()),
        };
        let keys = Keys::read(&folder).map_err(|error| ConfigError::Wrong {
            key: "signing.keys_folder".into(),
            problem: error.to_string(),
        })?;
        tracing::info!(mode = ?config.mode, keys = %keys, "messages are signed");
        Ok(Self(Some(Arc::new(On {
            required: config.mode == SigningMode::Require,
            folder,
            keys: RwLock::new(Arc::new(keys)),
            told: Mutex::default(),
        }))))
    }

    /// Adds the signature to a message that is about to be published.
    #[must_use]
    pub fn sign(
        &self,
        purpose: Purpose,
        properties: BasicProperties,
        body: &[u8],
    ) -> BasicProperties {
        let Some(on) = &self.0 else {
            return properties;
        };
        let signature = on.keys().sign(purpose, &properties, body);
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(
            HEADER_SIGNATURE.into(),
            AMQPValue::LongString(LongString::from(signature)),
        );
        properties.with_headers(headers)
    }

    /// Whether a delivery may be believed. Everything may while signing is off or only observed.
    pub fn check(
        &self,
        purpose: Purpose,
        properties: &BasicProperties,
        body: &[u8],
    ) -> Result<(), SignatureError> {
        let Some(on) = &self.0 else {
            return Ok(());
        };
        let Err(error) = on.keys().check(purpose, properties, body) else {
            return Ok(());
        };
        let (message, reason) = (purpose.word(), error.reason());
        metrics::counter!("tidegate_bad_signatures_total", "message" => message, "reason" => reason)
            .increment(1);
        if lock(&on.told).insert((purpose, reason)) {
            tracing::warn!(%error, message, refused = on.required, "a message whose signature is not right");
        }
        if on.required { Err(error) } else { Ok(()) }
    }

    /// Reads the keys again whenever their folder has changed. What cannot be used changes nothing.
    pub async fn keep_fresh(self, draining: CancellationToken) -> Result<(), Infallible> {
        let Some(on) = self.0 else {
            draining.cancelled().await;
            return Ok(());
        };
        let mut tick = tokio::time::interval(KEYS_EVERY);
        let mut last_problem = None;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = draining.cancelled() => return Ok(()),
            }
            let folder = on.folder.clone();
            // A folder on the network may take its time, and this thread keeps heartbeats.
            let Ok(read) = tokio::task::spawn_blocking(move || Keys::read(&folder)).await else {
                continue;
            };
            match read {
                Ok(keys) => {
                    last_problem = None;
                    on.replace(keys);
                }
                Err(error) => {
                    let problem = error.to_string();
                    if last_problem.as_ref() != Some(&problem) {
                        tracing::error!(
                            error = problem,
                            "signing keys cannot be read, the old ones stay"
                        );
                        metrics::counter!("tidegate_signing_keys_failures_total").increment(1);
                        last_problem = Some(problem);
                    }
                }
            }
        }
    }
}

impl On {
    fn keys(&self) -> Arc<Keys> {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn replace(&self, keys: Keys) {
        if keys == *self.keys() {
            return;
        }
        tracing::info!(keys = %keys, "signing keys were replaced");
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        lock(&self.told).clear();
    }
}

/// A panic while the lock was held leaves a set that says too much or too little once.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("Signing(off)"),
            Some(on) => write!(f, "Signing(required: {}, {})", on.required, on.keys()),
        }
    }
}

/// Tells the recorder what the metrics of signing mean; both programs have them.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "tidegate_bad_signatures_total",
        "Messages whose signature is missing or not right, by kind of message and reason; refused when \
         signing.mode is require."
    );
    metrics::describe_counter!(
        "tidegate_signing_keys_failures_total",
        "Times that the folder of signing keys could not be used; the old keys stay."
    );
}

#[cfg(test)]
mod tests;
