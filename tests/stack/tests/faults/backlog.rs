//! A million batches wait, and neither a small tenant nor a coordinator that starts notices much of it.

use std::time::Duration;

use harness::rabbitmq::shared as broker;
use scenario::backlog::restart_with_pending;
use scenario::fairness::two_tenants;

const MILLION: u32 = 1_000_000;
/// For what else a test machine has to do.
const SLACK: Duration = Duration::from_secs(1);
const FIRST_PUBLISH: Duration = Duration::from_secs(2);
const MEMORY: u64 = 100 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_small_tenant_does_not_wait_for_a_million() {
    let waits = two_tenants(broker(), MILLION).await.unwrap();
    eprintln!("{waits:?}");
    let limit = waits.alone * 2 + waits.window + SLACK;
    assert!(waits.together <= limit, "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_million_pending_is_quick_and_small() {
    let restart = restart_with_pending(broker(), MILLION).await.unwrap();
    eprintln!("{restart:?}");
    assert!(restart.first_publish <= FIRST_PUBLISH, "{restart:?}");
    assert!(restart.memory.peak <= MEMORY, "{restart:?}");
}
