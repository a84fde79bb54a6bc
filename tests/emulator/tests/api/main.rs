//! The emulator over real sockets: what a client sees, in the order of the specification.

#![allow(
    clippy::unwrap_used,
    reason = "a test says by panicking that it failed"
)]

mod batch;
mod clock;
mod errors;
mod faults;
mod program;
mod query;
mod quota;
mod support;
mod tokens;
