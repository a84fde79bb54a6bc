//! Presence messages, one a line, as a coordinator hears them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use coordinator::fleet::Fleet;
use jiff::Timestamp;
use shared::id::BatchId;
use shared::name::{Instance, PipelineName};
use shared::presence::Presence;

/// Whatever workers say of themselves, the fleet can be counted, shown and forgotten.
pub fn run(input: &[u8]) {
    let mut fleet = Fleet::default();
    let start = Instant::now();
    let clock = Timestamp::from_second(1_770_000_000).expect("a time");
    fleet.listens(start);
    for (second, line) in (1..).zip(input.split(|byte| *byte == b'\n')) {
        let now = start + Duration::from_secs(second);
        let Ok(presence) = serde_json::from_slice::<Presence>(line) else {
            continue;
        };
        let (held, leaving) = (presence.holding.first().copied(), presence.leaving);
        let name = presence.worker.clone();
        fleet.hear(presence, now, clock);
        assert_eq!(fleet.last_words(&name).is_some(), !leaving);
        if let Some(batch) = held {
            assert_eq!(fleet.unheard(batch, now), Some(Duration::ZERO));
        }
        let shown = fleet.workers(now);
        serde_json::to_string(&shown).expect("workers can be shown");
        for pipeline in fleet.slots().keys() {
            assert!(fleet.serving(pipeline) > 0);
        }
    }
    let later = start + Duration::from_hours(1);
    fleet.forget_silent(later, Duration::from_mins(1));
    assert!(fleet.workers(later).is_empty(), "nobody spoke for an hour");
}

/// Two workers, of which one leaves.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let presence = |name: &str, leaving| Presence {
        worker: Instance::from(name.to_owned()),
        version: "0.1.0".to_owned(),
        pipelines: vec![PipelineName::new("gsc.slice").expect("a name")],
        slots: 16,
        holding: vec![BatchId::generate()],
        progress: HashMap::new(),
        draining: leaving,
        leaving,
        returned: vec![BatchId::generate()],
        lanes: 2,
        memory_bytes: 64 << 20,
        clock_ms: 1_770_000_000_000,
    };
    let lines = [
        presence("a", false),
        presence("b", false),
        presence("a", true),
    ];
    let lines = lines.map(|line| serde_json::to_string(&line).expect("plain data"));
    vec![lines[0].clone().into_bytes(), lines.join("\n").into_bytes()]
}
