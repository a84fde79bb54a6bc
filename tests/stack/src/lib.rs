//! What the system tests have in common: the two kinds of work that they let Tidegate do.
//!
//! [`search_console`] syncs from the emulator and compares with its truth; [`script`] runs a shell script
//! that notes when and where each batch was started, and can be held up.

pub mod script;
pub mod search_console;
