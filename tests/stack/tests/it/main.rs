//! Tidegate as a whole: real coordinators and workers on a real broker, doing real work. One module is one
//! thing that can happen to it. What takes minutes is in `tests/faults`.

// A test's failures are panics with a backtrace.
#![allow(clippy::unwrap_used)]

mod accounts;
mod ask;
mod backlog;
mod bad_input;
mod bad_output;
mod bad_setup;
mod blocking;
mod cancel;
mod crashes;
mod drain;
mod examples;
mod exec;
#[cfg(debug_assertions)]
// Fail points are in debug builds only.
mod failpoints;
mod health;
mod ledger;
mod limits;
mod lost;
mod operations;
mod outages;
mod prefetch;
mod reload;
mod resume;
mod schedules;
mod search_console;
mod sinks;
mod strangers;
mod suspects;
mod tls;
mod webhooks;
