//! An installation in containers, as deploy/compose makes one: RabbitMQ under the least-privilege accounts, PostgreSQL,
//! a coordinator, workers, and the emulator in Google's place.
//!
//! [`docker`] is the engine, by its command line; [`images`] says what runs; [`installation`] starts it;
//! [`sync`] is the work that it is given, and what has to come out; [`broker`] is RabbitMQ, with one node or three. [`compose`] is
//! deploy/compose itself.
//!
//! Everything carries the label [`docker::label`] and is removed when its test ends; `tests/containers.sh` removes what
//! a killed test leaves behind.

// What was measured, and what a container said last, is said on standard error.
#![allow(clippy::print_stderr)]

pub mod broker;
pub mod compose;
pub mod docker;
pub mod images;
pub mod installation;
pub mod sync;
