//! New images take the place of the old ones, one container after the other, while a run works.

use std::time::Duration;

use containers::broker::Size;
use containers::docker::{docker, label};
use containers::images;
use containers::installation::{Installation, Plan};
use containers::sync::Sync;

const PROPERTIES: u32 = 6;
const DAYS: u32 = 6;
const FLEET: u32 = 3;

/// The image of a program under another tag, and different enough to be another image. Goes away with the test.
struct Next(String);

impl Next {
    fn of(program: &str) -> Self {
        let (old, new) = (images::of(program), format!("{}-next", images::of(program)));
        let container = docker(&["create", "--label", &label(), &old]).unwrap();
        let change = "LABEL org.opencontainers.image.revision=next";
        docker(&["commit", "--change", change, &container, &new]).unwrap();
        docker(&["rm", &container]).unwrap();
        Self(new)
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        if let Err(error) = docker(&["image", "rm", "--force", &self.0]) {
            eprintln!("{error:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_outlives_a_rolling_upgrade() {
    let plan = Plan {
        broker: Size::Single,
        properties: PROPERTIES,
        latency: Duration::from_millis(400),
        slots: 4,
    };
    // Before the containers, so that they are gone when it goes.
    let (coordinator, worker) = (Next::of("coordinator"), Next::of("worker"));
    let mut all = Installation::start(plan).await.unwrap();
    for number in 0..FLEET {
        all.start_worker(&format!("old-{number}")).await.unwrap();
    }
    let sync = Sync::begin(&all, PROPERTIES, DAYS).unwrap();
    sync.progress(&all, 100).await.unwrap();

    all.replace_coordinator(&coordinator.0).await.unwrap();
    for number in 0..FLEET {
        sync.progress(&all, 50).await.unwrap();
        let name = format!("new-{number}");
        all.start_worker_of(&worker.0, &name).await.unwrap();
        all.drain_worker(&format!("old-{number}")).unwrap();
    }
    sync.ensure_under_way(&all).await.unwrap();
    for container in all.workers().chain([all.coordinator()]) {
        let label = r#"{{index .Config.Labels "org.opencontainers.image.revision"}}"#;
        assert_eq!(
            container.inspect(label).unwrap(),
            "next",
            "{}",
            container.name
        );
    }
    let run = sync.finish(&all).await.unwrap();
    assert_eq!(run.retries, 0, "an upgrade burns no attempt: {run:?}");
}
