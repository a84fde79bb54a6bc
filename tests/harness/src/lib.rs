//! Starts what Tidegate's system tests need, each apart from everything else on the machine: a RabbitMQ
//! node, a PostgreSQL server, the Search Console emulator, real coordinators and workers.
//!
//! Everything lives in a [`scratch::Scratch`] folder, whose watchdog stops the processes and removes the
//! files when the test program ends, however it ends. A developer's own broker and database, and a second
//! run of the same tests, are never touched: every port, node name and cookie is the harness's own.
//!
//! `TIDEGATE_TEST_KEEP=1` keeps the folders, with all logs, and says where they are.

// Its users are tests and scripts: what it has to say belongs on their standard error.
#![allow(clippy::print_stderr)]

pub mod api;
pub mod certificates;
pub mod emulator;
pub mod limit_use;
pub mod lossy;
pub mod port;
pub mod postgres;
pub mod processes;
pub mod rabbitmq;
pub mod scratch;
pub mod stack;
pub mod truth;
pub mod wait;
