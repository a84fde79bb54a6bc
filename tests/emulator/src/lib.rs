//! A local stand-in for Google's Search Console API: same paths, bodies, errors, quotas and troubles, but with
//! content that is a pure function of a seed, and a clock that tests can move.
//!
//! The way of a request: `http` reads it, `api` (or `token`, or `admin`) decides, [`generator`] makes the rows,
//! `http` puts the answer on the wire, or breaks the wire when a [`fault`] says so. Quotas, latency, faults and
//! counters are its own; it protects nothing and therefore listens on loopback only, unless it is told its public URL.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use emulator::{Config, Emulator};
//!
//! let emulator = Emulator::start(Config::default().unlimited()).await?;
//! println!("{} with token {}", emulator.url(), emulator.issue_token("robot"));
//! emulator.stop().await;
//! # Ok(())
//! # }
//! ```

mod admin;
mod api;
mod app;
mod auth;
mod cache;
mod clock;
mod config;
pub mod fault;
pub mod generator;
mod http;
mod latency;
mod quota;
mod server;
mod stats;
mod token;

pub use auth::{AccountError, TestAccount, user_file, write_user_file};
pub use config::{
    Config, ConfigError, Latency, OauthClient, Permission, ServiceAccount, Site, Spelling, TieMode,
};
pub use server::{Emulator, Running, StartError};
pub use stats::Stats;
