//! For the tests of those who write handlers: the one crate that they depend on besides `tidegate-worker`.
//!
//! - [`Trial`] gives a handler batches as a worker does, in the test's own process, without a broker: what comes of
//!   each is its rows and the [`Outcome`] that a worker would report. Deadline, cancellation and panics are the
//!   worker's own; with tokio's paused time they take no time.
//! - [`ScriptedPermits`] gives leave for calls as a test says, and remembers what was asked and reported.
//! - [`Installation`] is the whole of Tidegate in one call: RabbitMQ, a coordinator, and the worker's own program.
//!
//! `examples/rust/tests` uses all three.

mod installation;
mod permits;
mod trial;

pub use coordinator::run::{DeadBatch, Run};
pub use harness::stack::Stack;
pub use installation::{Ended, Installation};
pub use permits::{Leave, ScriptedPermits};
pub use shared::ask::{Said, Want};
pub use shared::outcome::{Completed, FollowUp, Outcome};
pub use shared::presence::Progress;
pub use trial::{Trial, Tried};
