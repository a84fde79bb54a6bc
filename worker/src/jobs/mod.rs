//! Built-in kinds of work.

pub mod search_console;
