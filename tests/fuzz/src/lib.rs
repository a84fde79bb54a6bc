//! Throws anything at what Tidegate reads from outside, and says what must be true whatever it was.
//!
//! A target is a module with `run`, which panics when something is not true, and `seeds`, real inputs to start
//! from. `tests/fuzz.sh` has libFuzzer change them for a while, guided by the code that they reach, and then has
//! both ledgers store what it found. The tests here do the same for a moment: with the seeds, changed at random.

// A target's findings are panics.
#![allow(clippy::missing_panics_doc)]

pub mod ask;
pub mod fleet;
pub mod message;
pub mod outcomes;
pub mod submission;
pub mod work;

use std::sync::LazyLock;

use tokio::runtime::Runtime;

/// One target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Tries one input.
    pub run: fn(&[u8]),
    /// Real inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 5] = [
    Target {
        name: "submission",
        run: submission::run,
        seeds: submission::seeds,
    },
    Target {
        name: "work",
        run: work::run,
        seeds: work::seeds,
    },
    Target {
        name: "outcomes",
        run: outcomes::run,
        seeds: outcomes::seeds,
    },
    Target {
        name: "fleet",
        run: fleet::run,
        seeds: fleet::seeds,
    },
    Target {
        name: "ask",
        run: ask::run,
        seeds: ask::seeds,
    },
];

/// What the targets' futures run in.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.build().expect("a runtime without drivers")
});

#[cfg(test)]
mod tests;
