//! Handlers that need no Rust from the user.

pub mod exec;
pub mod http;
pub mod noop;
mod rows;
mod stop;
mod wire;
