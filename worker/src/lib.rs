//! Tidegate's worker.
//!
//! One delivery travels one chain: [`consume`] takes it and gives it a task, [`process`] runs the handler on
//! [`threads`] of its own, [`commit`] stores the result, has the outcome confirmed by [`report`], and acks.
//! [`handler`] is what a kind of work implements; [`handlers`] and [`jobs`] hold the built-in ones, [`sink`] the places
//! where results go, which [`sinks`] opens, [`collect`] the form that they take rows in; [`ask`] is the way to the
//! coordinator, [`permits`] its leave for calls, [`claim`] what it says about batches that were delivered before,
//! [`control`] what it says to all workers, [`presence`] what this one says about itself, [`health`] what it says to
//! whoever watches over it. [`app`] wires it all.
//!
//! For a worker with handlers of your own, implement [`Handler`] and run a [`Worker`] that serves it.

pub mod app;
pub mod ask;
pub mod claim;
pub mod collect;
pub mod commit;
pub mod consume;
pub mod control;
pub mod cursor;
pub mod handler;
pub mod handlers;
pub mod health;
pub mod held;
pub mod holding;
pub mod jobs;
pub mod json_rows;
pub mod metrics;
pub mod output;
pub mod own;
pub mod pace;
pub mod permits;
pub mod presence;
pub mod process;
pub mod program;
pub mod registry;
pub mod reload;
pub mod report;
pub mod sink;
pub mod sinks;
pub mod slots;
pub mod threads;

pub use async_trait::async_trait;
pub use handler::{BatchContext, Handler, HandlerError, Output};
pub use program::Worker;
pub use shared::name::{Key, LimitName};
