//! Dispatch.
pub mod dispatcher;
