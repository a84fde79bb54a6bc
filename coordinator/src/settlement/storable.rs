//! What a worker says, as every database takes it. Our workers say nothing else; one outcome that could not
//! be stored would hold up all others for ever.

use shared::name::Instance;
use shared::outcome::{FollowUp, Statistics, printable_error};
use shared::payload::{self, PayloadError};

/// Longest name, in bytes, of a worker or of something that was counted.
const MAX_NAME_BYTES: usize = 255;
/// Most different things that one batch counts.
const MAX_STATISTICS: usize = 100;
/// Largest count: far above anything real, and millions of them fit into 64 bits together.
const MAX_COUNT: u64 = 1 << 40;

/// Printable, and not too long.
pub(super) fn text(text: &str) -> String {
    printable_error(text)
}

/// The same, as short as a name.
pub(super) fn worker(worker: &Instance) -> Instance {
    if is_name(worker.as_str()) {
        return worker.clone();
    }
    let printable = printable_error(worker.as_str());
    Instance::from(printable[..printable.floor_char_boundary(MAX_NAME_BYTES)].to_owned())
}

/// No count is larger than anything real.
pub(super) fn count(count: u64) -> u64 {
    count.min(MAX_COUNT)
}

/// What is counted under a name that is none is left out; so is what is too much.
pub(super) fn statistics(mut statistics: Statistics) -> Statistics {
    let before = statistics.len();
    let mut room = MAX_STATISTICS;
    statistics.retain(|name, value| {
        *value = count(*value);
        let kept = is_name(name) && room > 0;
        room -= usize::from(kept);
        kept
    });
    if statistics.len() < before {
        tracing::warn!(
            left_out = before - statistics.len(),
            "a worker counts what cannot be stored"
        );
    }
    statistics
}

/// Why one of the batches that are asked for cannot be stored.
pub(super) fn check(follow_ups: &[FollowUp]) -> Result<(), PayloadError> {
    follow_ups
        .iter()
        .try_for_each(|follow_up| payload::check(&follow_up.payload))
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES && !name.contains(char::is_control)
}
