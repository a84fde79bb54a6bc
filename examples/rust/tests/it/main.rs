//! The example's handlers alone, and its program with everything around it.

// A test's failures are panics with a backtrace.
#![allow(clippy::unwrap_used)]

mod alone;
mod site;
mod whole;
