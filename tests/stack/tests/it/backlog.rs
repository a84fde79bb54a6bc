//! What a large backlog does to those who wait behind it, and to a coordinator that starts with it. The same
//! with a million batches is in `tests/faults`.

use std::time::Duration;

use harness::rabbitmq::shared as broker;
use scenario::backlog::restart_with_pending;
use scenario::fairness::two_tenants;

/// For what else a test machine has to do.
const SLACK: Duration = Duration::from_secs(1);
/// Without optimisation, and with other tests at the same time; `tests/faults` insists on 2 s.
const FIRST_PUBLISH: Duration = Duration::from_secs(5);
/// Without optimisation the program alone takes a third of it; `tests/faults` insists on 100 MiB.
const MEMORY: u64 = 200 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_small_tenant_does_not_wait_for_a_large_one() {
    let waits = two_tenants(broker(), 50_000).await.unwrap();
    let limit = waits.alone * 2 + waits.window + SLACK;
    assert!(waits.together <= limit, "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_large_backlog_is_quick_and_small() {
    let restart = restart_with_pending(broker(), 100_000).await.unwrap();
    assert!(restart.first_publish <= FIRST_PUBLISH, "{restart:?}");
    assert!(restart.memory.peak <= MEMORY, "{restart:?}");
}
