//! Tests of the worker that need a database or the emulator.

// Clippy exempts functions marked as tests; the helpers beside them are tests as well.
#![allow(clippy::unwrap_used)]

mod cursors;
mod search_console;
mod sinks;
mod support;
