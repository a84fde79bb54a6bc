//! The exit codes of all three programs, after BSD's `sysexits.h`. README lists them.

/// Everything asked for was done.
pub const OK: u8 = 0;
/// It ran, and the result is bad: a run with dead or cancelled batches, a task that died.
pub const FAILED: u8 = 1;
/// The command line is wrong (clap's own code).
pub const USAGE: u8 = 2;
/// The input is wrong: malformed NDJSON, a refused submission (`EX_DATAERR`).
pub const BAD_INPUT: u8 = 65;
/// A service that is needed cannot be reached (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;
/// The configuration is wrong, or contradicts what the broker or database has (`EX_CONFIG`).
pub const CONFIG: u8 = 78;
