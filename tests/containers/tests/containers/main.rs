//! What is shown of the images: `tests/containers.sh` builds them and runs this.

// A test's failures are panics with a backtrace; what it measured is printed.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod cluster;
mod compose;
mod faults;
mod image;
mod scale;
mod upgrade;
