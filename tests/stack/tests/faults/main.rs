//! System tests that take minutes; `tests/faults.sh` runs them, optimised.

// A test's failures are panics with a backtrace; what it measured is printed.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod backlog;
mod blocking;
mod bounded;
mod large;
mod outages;
mod rolling;
