//! Groups that begin a little apart: what is done at once for many costs little more than for one.

use std::ops::Range;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Groups begin so far apart. A commit or a confirm takes about a millisecond, so in a stream of single batches that is
/// five where one would do, and nobody sees five milliseconds.
const APART: Duration = Duration::from_millis(5);
/// A group of so many waits as long again: its stream brings as many more, and half of the default `window_min` is
/// work meanwhile. Fewer come from a thin stream or through a small window, such as a key's limit, and would only wait.
const COMPANY: Range<usize> = 4..8;

/// When the next group may begin. What comes after a pause waits for nobody; what comes in a stream is gathered.
#[derive(Debug)]
pub struct Gathering {
    next: Instant,
}

impl Gathering {
    /// The first group may begin at once.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: Instant::now(),
        }
    }

    /// Waits until the next group may begin.
    pub async fn gathered(&self) {
        sleep_until(self.next).await;
    }

    /// Waits up to as long again, if the group has so many members that more will join them.
    pub async fn had_company(&self, members: usize) {
        if COMPANY.contains(&members) {
            sleep_until(self.next + APART).await;
        }
    }

    /// A group begins now.
    pub fn begin(&mut self) {
        self.next = Instant::now() + APART;
    }
}

impl Default for Gathering {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_gathered_and_what_comes_alone_waits_for_nobody() {
        let mut gathering = Gathering::new();
        let start = Instant::now();
        let mut begin = async || {
            gathering.gathered().await;
            gathering.begin();
            start.elapsed().as_millis()
        };
        assert_eq!(begin().await, 0);
        let second = begin().await;
        assert!((5..7).contains(&second), "{second}");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(begin().await, second + 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_wait_twice_as_long_for_more() {
        let mut gathering = Gathering::new();
        let mut begin = async |members: usize| {
            let start = Instant::now();
            gathering.gathered().await;
            gathering.had_company(members).await;
            gathering.begin();
            start.elapsed().as_millis()
        };
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(begin(4).await, 0);
        for (members, expected) in [(4, 10), (7, 10), (3, 5), (8, 5)] {
            let waited = begin(members).await;
            assert!(
                (expected..expected + 2).contains(&waited),
                "{members}: {waited}"
            );
        }
    }
}
