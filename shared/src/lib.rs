//! What Tidegate's coordinator and workers agree on, and nothing that flows.
//!
//! Read in this order: the words ([`id`], [`name`]), what travels ([`batch`], [`outcome`],
//! [`presence`], [`control`], [`ask`]), where it travels ([`topology`], [`broker`]), how it is believed
//! ([`signing`]), and what every process needs ([`config`], [`timetable`], [`lifecycle`], [`server`], [`tls`], [`fresh`],
//! [`telemetry`], [`probe`], [`backoff`], [`gather`], [`net`], [`failpoint`]).

pub mod ask;
pub mod backoff;
pub mod batch;
pub mod broker;
pub mod config;
pub mod control;
pub mod exit;
pub mod failpoint;
pub mod fresh;
pub mod gather;
pub mod id;
pub mod lifecycle;
pub mod name;
pub mod net;
pub mod outcome;
pub mod payload;
pub mod presence;
pub mod probe;
pub mod search_console;
pub mod server;
pub mod signing;
pub mod telemetry;
pub mod timetable;
pub mod tls;
pub mod topology;

mod secret_file;
mod wire;
