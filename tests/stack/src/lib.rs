//! What the system tests have in common: the kinds of work that they let Tidegate do.
//!
//! [`search_console`] syncs from the emulator and compares with its truth; [`script`] runs a shell script
//! that notes when and where each batch was started, and can be held up. `aborting-worker` is a worker that
//! batches can kill, `sleeping-worker` ([`sleeper`]) one whose batches take as long as they are told,
//! `blocking-worker` one whose threads they can block ([`blocking`]), and `resuming-worker` one that goes on where an
//! earlier attempt stopped. [`fairness`], [`backlog`] and [`rolling`] are scenarios that the suite plays with many
//! batches, and the slow suite with more; [`outage`] is one that the suite plays for seconds, and the slow suite
//! for longer.

// What is left behind is said on standard error.
#![allow(clippy::print_stderr)]

pub mod backlog;
pub mod blocking;
pub mod fairness;
pub mod outage;
pub mod rolling;
pub mod script;
pub mod search_console;
pub mod sleeper;

/// The pipeline whose batches can kill `aborting-worker`.
pub const ABORTING: &str = "aborting";
/// The pipeline of `resuming-worker`, whose batches are this many steps.
pub const RESUMING: &str = "resuming";
/// See [`RESUMING`].
pub const STEPS: u32 = 10;
/// The pipeline whose batches block the threads of `blocking-worker`, for as many milliseconds as they say.
pub const BLOCKING: &str = "blocking";
