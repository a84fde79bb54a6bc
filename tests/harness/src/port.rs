//! Ports for servers that tests start.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

use rand::RngExt;

/// Below the kernel's ephemeral range: while a server is down for a restart, no outgoing connection can
/// take its port, and no client can connect to itself.
const RANGE: std::ops::Range<u16> = 15_000..31_000;

static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port on which nobody listens, chosen at random so that programs started at once do not meet, and
/// given out once in this process.
///
/// # Panics
/// When the machine has no free port left.
#[must_use]
pub fn free() -> u16 {
    const TRIES: usize = 10_000;
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..TRIES)
        .map(|_| rand::rng().random_range(RANGE))
        .find(|port| is_free(*port) && given.insert(*port))
        .expect("one port in sixteen thousand is free")
}

/// Whether nobody listens on it.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}
